package repository

import (
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func TestIssueFormsAreAsGitHubReadsThem(t *testing.T) {
	for _, path := range matching(t, ".github/ISSUE_TEMPLATE/*") {
		form := parse(t, path)
		if strings.HasSuffix(path, "/config.yml") {
			for _, key := range unknown(form, "blank_issues_enabled", "contact_links") {
				t.Errorf("%s: %s is no key of it", path, key)
			}
			continue
		}
		if !strings.HasSuffix(path, ".yaml") {
			t.Errorf("%s is no form", path)
		}
		for _, key := range unknown(form, "name", "description", "title", "labels", "assignees", "projects", "type", "body") {
			t.Errorf("%s: %s is no key of a form", path, key)
		}
		if text(field(form, "name")) == "" || text(field(form, "description")) == "" {
			t.Errorf("%s: a form has a name and a description", path)
		}
		checkBody(t, path, field(form, "body"))
	}
}

func checkBody(t *testing.T, path string, body *yaml.Node) {
	t.Helper()
	if body == nil || body.Kind != yaml.SequenceNode {
		t.Fatalf("%s: a form has a body", path)
	}
	var ids []string
	for _, element := range body.Content {
		kind, id, attributes := text(field(element, "type")), text(field(element, "id")), field(element, "attributes")
		for _, key := range unknown(element, "type", "id", "attributes", "validations") {
			t.Errorf("%s: %s: %s is no key of an element", path, id, key)
		}
		if kind == "markdown" {
			if text(field(attributes, "value")) == "" {
				t.Errorf("%s: markdown has a value", path)
			}
			continue
		}
		allowed := map[string][]string{
			"input":      {"label", "description", "placeholder", "value"},
			"textarea":   {"label", "description", "placeholder", "value", "render"},
			"dropdown":   {"label", "description", "multiple", "options", "default"},
			"checkboxes": {"label", "description", "options"},
		}[kind]
		if allowed == nil {
			t.Errorf("%s: %s is no type of an element", path, kind)
		}
		for _, key := range unknown(attributes, allowed...) {
			t.Errorf("%s: %s: %s is no attribute of a %s", path, id, key, kind)
		}
		if id == "" || slices.Contains(ids, id) || text(field(attributes, "label")) == "" {
			t.Errorf("%s: %q: an element has an id of its own and a label", path, id)
		}
		ids = append(ids, id)
		if slices.Contains(allowed, "options") {
			options := field(attributes, "options")
			if options == nil || options.Kind != yaml.SequenceNode || len(options.Content) == 0 {
				t.Errorf("%s: %s has no options", path, id)
			}
		}
		for _, key := range unknown(field(element, "validations"), "required") {
			t.Errorf("%s: %s: %s is no validation", path, id, key)
		}
	}
	if len(ids) == 0 {
		t.Errorf("%s asks for nothing", path)
	}
}

func TestDependabotLooksWhereThereAreDependencies(t *testing.T) {
	manifests := map[string]string{"cargo": "Cargo.lock", "gomod": "go.mod", "github-actions": ".github/workflows/*"}
	updates := field(parse(t, ".github/dependabot.yml"), "updates")
	if updates == nil || len(updates.Content) < len(manifests) {
		t.Fatalf("updates are missing")
	}
	for _, update := range updates.Content {
		manifest, isKnown := manifests[text(field(update, "package-ecosystem"))]
		if !isKnown {
			t.Errorf("%s: unknown to this test", text(field(update, "package-ecosystem")))
		}
		folders := []string{text(field(update, "directory"))}
		if list := field(update, "directories"); list != nil {
			folders = nil
			for _, each := range list.Content {
				folders = append(folders, each.Value)
			}
		}
		for _, folder := range folders {
			matching(t, folder+"/"+manifest)
		}
	}
}
