package repository

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const root = "../../.."

// matching returns the files that any of the patterns, relative to the root, names.
func matching(t *testing.T, patterns ...string) []string {
	t.Helper()
	var found []string
	for _, pattern := range patterns {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			relative, err := filepath.Rel(root, path)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, relative)
		}
	}
	if len(found) == 0 {
		t.Fatalf("nothing is named %s", patterns)
	}
	return found
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func exists(path string) bool {
	_, err := os.Stat(filepath.Join(root, path))
	return err == nil
}

func isExecutable(path string) bool {
	info, err := os.Stat(filepath.Join(root, path))
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// parse reads a file of one YAML document into a node, which keeps comments and finds keys that are there twice.
func parse(t *testing.T, path string) *yaml.Node {
	t.Helper()
	var document yaml.Node
	text := read(t, path)
	if err := yaml.Unmarshal([]byte(text), &document); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	var unique map[string]any
	if err := yaml.Unmarshal([]byte(text), &unique); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return document.Content[0]
}

// field returns the value of a key, or nil.
func field(node *yaml.Node, key string) *yaml.Node {
	if node == nil || node.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == key {
			return node.Content[i+1]
		}
	}
	return nil
}

func text(node *yaml.Node) string {
	if node == nil || node.Kind != yaml.ScalarNode {
		return ""
	}
	return node.Value
}

func keys(node *yaml.Node) []string {
	var found []string
	if node != nil && node.Kind == yaml.MappingNode {
		for i := 0; i < len(node.Content); i += 2 {
			found = append(found, node.Content[i].Value)
		}
	}
	return found
}

// unknown returns the keys that are not among those allowed.
func unknown(node *yaml.Node, allowed ...string) []string {
	return slices.DeleteFunc(keys(node), func(key string) bool { return slices.Contains(allowed, key) })
}

// A synopsis is a line of `./dev help`: the fixed words that a command begins with, and the rest of its grammar.
type synopsis struct {
	words     []string
	arguments string
}

var fixedWord = regexp.MustCompile(`^[a-z0-9]+$`)

// synopses asks `./dev help`.
func synopses(t *testing.T) []synopsis {
	t.Helper()
	command := exec.Command("./dev", "help")
	command.Dir = root
	command.Env = append(os.Environ(), "LARDER_CACHE="+t.TempDir())
	help, err := command.Output()
	if err != nil {
		t.Fatalf("./dev help: %v", err)
	}
	found := []synopsis{{words: []string{"help"}}}
	for line := range strings.Lines(string(help)) {
		usage, isCommand := strings.CutPrefix(line, "./dev ")
		if !isCommand {
			continue
		}
		usage, _, isDescribed := strings.Cut(usage, "  ")
		if !isDescribed {
			t.Errorf("./dev help: write two spaces before the description: %s", line)
		}
		var one synopsis
		for _, word := range strings.Fields(usage) {
			if one.arguments == "" && fixedWord.MatchString(word) {
				one.words = append(one.words, word)
			} else {
				one.arguments += " " + word
			}
		}
		found = append(found, one)
	}
	if len(found) < 10 {
		t.Fatalf("./dev help lists %d commands", len(found))
	}
	return found
}

var placeholder = regexp.MustCompile(`[A-Z]{2,}`)

// checkDev returns an error if `./dev WORDS...` is no command that help lists.
func checkDev(known []synopsis, words []string) error {
	best := -1
	for i, one := range known {
		isPrefix := len(one.words) <= len(words) && slices.Equal(one.words, words[:len(one.words)])
		if isPrefix && (best < 0 || len(one.words) > len(known[best].words)) {
			best = i
		}
	}
	if best < 0 {
		return fmt.Errorf("`./dev help` lists no `./dev %s`", strings.Join(words, " "))
	}
	one := known[best]
	takesAny := strings.Contains(one.arguments, "OPTION...")
	for _, word := range words[len(one.words):] {
		isTaken := takesAny || placeholder.MatchString(one.arguments)
		if strings.HasPrefix(word, "-") {
			isTaken = takesAny || slices.Contains(strings.Fields(strings.Trim(one.arguments, " []")), word)
		}
		if !isTaken {
			return fmt.Errorf("`./dev help` does not say that `./dev %s` takes %s", strings.Join(one.words, " "), word)
		}
	}
	return nil
}

func TestACommandOfDevIsOneThatHelpLists(t *testing.T) {
	known := synopses(t)
	for _, command := range []string{
		"help", "test", "test unit", "test e2e shop", "generate --check", "fuzz 60 head", "bench hit --markdown x", "test deny --advisories",
	} {
		if err := checkDev(known, strings.Fields(command)); err != nil {
			t.Error(err)
		}
	}
	for _, command := range []string{"", "tset", "test uint", "generate --chekc", "test style now", "up example", "bench", "test deny --advisory"} {
		if checkDev(known, strings.Fields(command)) == nil {
			t.Errorf("./dev %s passes", command)
		}
	}
}

func TestDevReadsEachOfItsParts(t *testing.T) {
	_, rest, _ := strings.Cut(read(t, "dev"), "for part in ")
	list, _, isThere := strings.Cut(rest, ";")
	if !isThere {
		t.Fatal("dev has no list of parts")
	}
	var files []string
	for _, path := range matching(t, "devenv/*.sh") {
		files = append(files, strings.TrimSuffix(filepath.Base(path), ".sh"))
	}
	listed := strings.Fields(list)
	slices.Sort(listed)
	slices.Sort(files)
	if !slices.Equal(listed, files) {
		t.Errorf("dev reads %s, devenv/ has %s", listed, files)
	}
}
