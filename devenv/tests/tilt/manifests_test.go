package tilt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.starlark.net/starlark"
	"go.yaml.in/yaml/v3"
)

// object is what the test reads of a Kubernetes object.
type object struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Spec     struct {
		Template struct {
			Spec struct {
				Containers []struct {
					Image string
					Env   []struct{ Name, Value string }
				}
			}
		}
	}
}

func (o object) isWorkload() bool {
	return o.Kind == "Deployment" || o.Kind == "StatefulSet"
}

// matches says whether a selector of Tilt's, NAME[:KIND[:NAMESPACE]] in any case, names the object.
func (o object) matches(selector string) bool {
	own := []string{o.Metadata.Name, o.Kind, o.Metadata.Namespace}
	for i, part := range strings.Split(selector, ":") {
		if i >= len(own) || !strings.EqualFold(part, own[i]) {
			return false
		}
	}
	return true
}

// holds says where an image of that name, whatever its tag, is asked for.
func (o object) holds(image string) (inContainer, inEnv bool) {
	for _, container := range o.Spec.Template.Spec.Containers {
		inContainer = inContainer || strings.HasPrefix(container.Image, image+":")
		for _, env := range container.Env {
			inEnv = inEnv || strings.HasPrefix(env.Value, image+":")
		}
	}
	return
}

// objectsOf reads what a k8s_yaml call deploys: paths, or what helm, kustomize or encode_yaml made.
func objectsOf(t *testing.T, deployed call) []object {
	t.Helper()
	var objects []object
	for _, source := range deployed.list("yaml") {
		made, isBlob := source.(recorded)
		switch {
		case !isBlob:
			path, _ := starlark.AsString(source)
			objects = append(objects, readObjects(t, readFile(t, path))...)
		case made.call.builtin == "helm":
			objects = append(objects, readObjects(t, helm(t, made.call))...)
		case made.call.builtin == "kustomize":
			objects = append(objects, kustomization(t, made.call.text("pathToDir"))...)
		default:
			text, _ := starlark.AsString(made.Value)
			objects = append(objects, readObjects(t, []byte(text))...)
		}
	}
	return objects
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func readObjects(t *testing.T, text []byte) []object {
	t.Helper()
	var objects []object
	for decoder := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var next object
		err := decoder.Decode(&next)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		if next.Kind != "" {
			objects = append(objects, next)
		}
	}
}

// helm renders as Tilt does, with the flags that the call stands for.
func helm(t *testing.T, call call) []byte {
	t.Helper()
	arguments := []string{"template", call.text("name"), call.text("pathToChartDir"), "--namespace", call.text("namespace")}
	for _, value := range call.texts("set") {
		arguments = append(arguments, "--set", value)
	}
	for _, file := range call.texts("values") {
		arguments = append(arguments, "--values", file)
	}
	program, err := exec.LookPath("helm")
	if err != nil {
		t.Fatalf("%v: this test renders the chart; `./dev test unit` brings helm along", err)
	}
	command := exec.Command(program, arguments...)
	command.Dir = root
	var complaint strings.Builder
	command.Stderr = &complaint
	text, err := command.Output()
	if err != nil {
		t.Fatal(fmt.Errorf("%v: %w: %s", command, err, complaint.String()))
	}
	return text
}

// kustomization reads the files that a kustomization lists; ours does nothing but list.
func kustomization(t *testing.T, folder string) []object {
	t.Helper()
	var listed struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Resources  []string
	}
	decoder := yaml.NewDecoder(bytes.NewReader(readFile(t, filepath.Join(folder, "kustomization.yaml"))))
	decoder.KnownFields(true)
	if err := decoder.Decode(&listed); err != nil {
		t.Fatal(err)
	}
	var objects []object
	for _, path := range listed.Resources {
		objects = append(objects, readObjects(t, readFile(t, filepath.Join(folder, path)))...)
	}
	return objects
}
