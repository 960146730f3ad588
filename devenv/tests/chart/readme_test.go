package chart

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write the README's table of values instead of checking it")

const (
	readme     = folder + "/README.md"
	tableStart = "<!-- The table is made from values.yaml by `cd devenv/tests && go test ./chart -update`. -->\n"
	tableEnd   = "<!-- End of the table. -->\n"
)

func TestTheReadmeListsEveryValueWithItsDefaultAndDescription(t *testing.T) {
	text := string(readFile(t, readme))
	before, rest, hasStart := strings.Cut(text, tableStart)
	_, after, hasEnd := strings.Cut(rest, tableEnd)
	if !hasStart || !hasEnd {
		t.Fatalf("%s has no table of values", readme)
	}
	var table strings.Builder
	table.WriteString("\n| Value | Default | Description |\n| --- | --- | --- |\n")
	for _, row := range rows(t, valuesOf(t), "", "") {
		table.WriteString(row)
	}
	wanted := before + tableStart + table.String() + "\n" + tableEnd + after
	if *update {
		if err := os.WriteFile(filepath.Join(root, readme), []byte(wanted), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if text != wanted {
		t.Errorf("%s differs from values.yaml: run `cd devenv/tests && go test ./chart -update`", readme)
	}
}

// rows returns a row for each value. The comment of a group describes its first member; a mapping whose members have no
// comments is one value.
func rows(t *testing.T, node *yaml.Node, prefix, group string) (found []string) {
	t.Helper()
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		path := prefix + key.Value
		comment := description(key)
		if comment == "" {
			comment, group = group, ""
		}
		if isGroup(value) {
			found = append(found, rows(t, value, path+".", comment)...)
			continue
		}
		if comment == "" {
			t.Errorf("values.yaml: %s has no comment", path)
		}
		found = append(found, fmt.Sprintf("| `%s` | %s | %s |\n", path, literal(t, value), strings.ReplaceAll(comment, "|", "\\|")))
	}
	return found
}

// isGroup returns true for a mapping with a comment on one of its members, at any depth.
func isGroup(value *yaml.Node) bool {
	if value.Kind != yaml.MappingNode {
		return false
	}
	for i := 0; i+1 < len(value.Content); i += 2 {
		if description(value.Content[i]) != "" || isGroup(value.Content[i+1]) {
			return true
		}
	}
	return false
}

// description returns the comment above a key, on one line.
func description(key *yaml.Node) string {
	paragraphs := strings.Split(key.HeadComment, "\n\n")
	var words []string
	for line := range strings.Lines(paragraphs[len(paragraphs)-1]) {
		words = append(words, strings.Fields(strings.TrimPrefix(line, "#"))...)
	}
	return strings.Join(words, " ")
}

// literal returns a value as it would be written in YAML on one line; nothing for a long one.
func literal(t *testing.T, value *yaml.Node) string {
	t.Helper()
	if value.Kind == yaml.ScalarNode {
		if value.Value == "" || value.Tag == "!!null" {
			return ""
		}
		return "`" + value.Value + "`"
	}
	if len(value.Content) == 0 {
		return ""
	}
	flow := *value
	flow.Style = yaml.FlowStyle
	text, err := yaml.Marshal(&flow)
	if err != nil {
		t.Fatal(err)
	}
	if line := strings.TrimSpace(string(text)); !strings.Contains(line, "\n") && len(line) < 60 {
		return "`" + line + "`"
	}
	return "see values.yaml"
}
