// An application on Go's net/http with the parts that caches are attacked through: users that can be read and written, an
// account page for whoever has a cookie, and a page for every other path. It listens on 127.0.0.1, on the port of its
// argument.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"sync"
)

type user struct {
	ID      string `json:"id"`
	Version int    `json:"version"`
}

func main() {
	var lock sync.Mutex
	versions := map[string]int{}

	mux := http.NewServeMux()
	mux.HandleFunc("/api/users/{id}", func(response http.ResponseWriter, request *http.Request) {
		id := request.PathValue("id")
		lock.Lock()
		defer lock.Unlock()
		if request.Method != http.MethodGet && request.Method != http.MethodHead {
			versions[id]++
		}
		response.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(response).Encode(user{id, versions[id]})
	})
	mux.HandleFunc("/account", func(response http.ResponseWriter, request *http.Request) {
		fmt.Fprintf(response, "account of %s", request.Header.Get("Cookie"))
	})
	mux.HandleFunc("/whoami", func(response http.ResponseWriter, request *http.Request) {
		response.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(response).Encode(map[string]string{"host": request.Host, "ip": request.RemoteAddr, "url": request.RequestURI})
	})
	mux.HandleFunc("/", func(response http.ResponseWriter, request *http.Request) {
		fmt.Fprintf(response, "page %s %s", request.Method, request.RequestURI)
	})

	handler := http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		response.Header().Set("X-App", "go")
		response.Header().Set("X-Target", request.RequestURI)
		response.Header().Set("X-Peer", request.RemoteAddr)
		mux.ServeHTTP(response, request)
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], handler))
}
