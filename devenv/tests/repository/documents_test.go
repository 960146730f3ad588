package repository

import (
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documents returns every page that people read.
func documents(t *testing.T) []string {
	t.Helper()
	return matching(t, "*.md", "docs/*.md", "docs/*/*.md", "charts/*/*.md", "examples/*.md", "examples/*/*.md", "e2e/*.md", ".github/*.md")
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

func TestLinksOfDocumentsLeadSomewhere(t *testing.T) {
	for _, path := range documents(t) {
		for _, found := range link.FindAllStringSubmatch(read(t, path), -1) {
			target, err := url.Parse(found[1])
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			// The form for vulnerabilities is GitHub's, beside the files of the repository.
			if target.Scheme != "" || target.Path == "" || target.Path == "../../security/advisories/new" {
				continue
			}
			if !exists(filepath.Join(filepath.Dir(path), target.Path)) {
				t.Errorf("%s: %s does not exist", path, found[1])
			}
		}
	}
}

var devCommand = regexp.MustCompile("`\\./dev ([^`]+)`")

func TestCommandsOfDocumentsAreOnesThatHelpLists(t *testing.T) {
	known := synopses(t)
	for _, path := range append(documents(t), matching(t, ".github/*/*.yaml")...) {
		if path == "CHANGELOG.md" { // tells of what was
			continue
		}
		for _, found := range devCommand.FindAllStringSubmatch(read(t, path), -1) {
			if err := checkDev(known, strings.Fields(found[1])); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
}

var namedPath = regexp.MustCompile("`([\\w.-]+/[\\w./-]*)`")

func TestPathsInTheGuidesExist(t *testing.T) {
	examples := []string{"foo/", "kindest/node"} // a convention, and an image
	for _, path := range []string{"ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "MAINTAINERS.md", "docs/development.md", "deny.toml", ".github/PULL_REQUEST_TEMPLATE.md"} {
		for _, found := range namedPath.FindAllStringSubmatch(read(t, path), -1) {
			if !slices.Contains(examples, found[1]) && !exists(found[1]) {
				t.Errorf("%s: %s does not exist", path, found[1])
			}
		}
	}
}

var (
	address = regexp.MustCompile(`[\w.+-]+@[\w-]+(\.[\w-]+)*\.[a-zA-Z]{2,}`)
	host    = regexp.MustCompile(`https?://([\w.-]+)`)
)

func TestCommunityFilesNameNoAddressAndOnlyPublicHosts(t *testing.T) {
	public := []string{"www.contributor-covenant.org"}
	for _, path := range append(matching(t, ".github/*.*", ".github/*/*"), "SECURITY.md", "CODE_OF_CONDUCT.md", "MAINTAINERS.md", "CONTRIBUTING.md", ".editorconfig", ".gitattributes") {
		text := read(t, path)
		if found := address.FindString(text); found != "" {
			t.Errorf("%s names %s: reports go through GitHub", path, found)
		}
		for _, found := range host.FindAllStringSubmatch(text, -1) {
			if !slices.Contains(public, found[1]) {
				t.Errorf("%s names the host %s", path, found[1])
			}
		}
	}
}
