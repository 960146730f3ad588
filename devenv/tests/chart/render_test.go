package chart

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

	"go.yaml.in/yaml/v3"
)

const (
	root   = "../../.."
	folder = "charts/larder"
)

// An object is a rendered Kubernetes object.
type object map[string]any

// at returns the value at a path, such as "spec.template.spec.containers.0.image"; nil if there is none.
func (o object) at(path string) any {
	var value any = map[string]any(o)
	for key := range strings.SplitSeq(path, ".") {
		switch node := value.(type) {
		case map[string]any:
			value = node[key]
		case []any:
			var index int
			if _, err := fmt.Sscan(key, &index); err != nil || index >= len(node) {
				return nil
			}
			value = node[index]
		default:
			return nil
		}
	}
	return value
}

// template runs `helm template` with values, each as Helm's --set-json takes it.
func template(values ...string) (string, error) {
	arguments := []string{"template", "larder", folder, "--namespace", "larder-system", "--kube-version", "1.33.0"}
	for _, value := range values {
		arguments = append(arguments, "--set-json", value)
	}
	command := exec.Command("helm", arguments...)
	command.Dir = root
	var complaint strings.Builder
	command.Stderr = &complaint
	text, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("helm %s: %w: %s", strings.Join(arguments, " "), err, complaint.String())
	}
	return string(text), nil
}

// render returns the objects of the chart under values, by "Kind/name" or, outside of the release's namespace,
// "Kind/namespace/name".
func render(t *testing.T, values ...string) map[string]object {
	t.Helper()
	text, err := template(values...)
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]object{}
	for decoder := yaml.NewDecoder(strings.NewReader(text)); ; {
		// Decoded as a plain map, because members would be of a named type, too.
		var next map[string]any
		err := decoder.Decode(&next)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		if next == nil {
			continue
		}
		rendered := object(next)
		name := fmt.Sprint(rendered.at("kind"), "/", rendered.at("metadata.name"))
		if namespace := rendered.at("metadata.namespace"); namespace != nil && namespace != "larder-system" {
			name = fmt.Sprint(rendered.at("kind"), "/", namespace, "/", rendered.at("metadata.name"))
		}
		if objects[name] != nil {
			t.Errorf("%s is there twice", name)
		}
		objects[name] = rendered
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// valuesOf returns the node of values.yaml, with its comments.
func valuesOf(t *testing.T) *yaml.Node {
	t.Helper()
	var document yaml.Node
	if err := yaml.NewDecoder(bytes.NewReader(readFile(t, folder+"/values.yaml"))).Decode(&document); err != nil {
		t.Fatal(err)
	}
	return document.Content[0]
}
