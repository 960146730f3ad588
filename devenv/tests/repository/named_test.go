package repository

import (
	"cmp"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var namedGoTest = regexp.MustCompile("`(Test[A-Z]\\w+)`")

var namedTest = regexp.MustCompile("`((?:[a-z0-9_]+::)+)([a-z0-9]+_[a-z0-9_]+)`")

// modules returns the text of every Rust file by its path as a module, in which the folders src and tests of a crate are
// left out: crds/src/definition.rs is crds::definition.
func modules(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() && slices.Contains([]string{"target", ".git", "node_modules"}, entry.Name()) {
			return cmp.Or(err, fs.SkipDir)
		}
		if !strings.HasSuffix(path, ".rs") {
			return nil
		}
		relative, err := filepath.Rel(root, strings.TrimSuffix(path, ".rs"))
		if err != nil {
			return err
		}
		parts := strings.Split(filepath.ToSlash(relative), "/")
		parts = slices.DeleteFunc(parts[:len(parts)-1], func(part string) bool { return part == "src" || part == "tests" })
		text, err := os.ReadFile(path)
		found[strings.Join(append(parts, filepath.Base(relative)), "::")] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// hasTest returns true if a module whose path ends with the name, in a file of its own or with its tests in one, has the test.
func hasTest(modules map[string]string, module, test string) bool {
	names := []string{module, module + "::tests", strings.TrimSuffix(module, "::tests")}
	for path, text := range modules {
		isNamed := slices.ContainsFunc(names, func(name string) bool {
			return path == name || strings.HasSuffix(path, "::"+name)
		})
		if isNamed && strings.Contains(text, "fn "+test+"(") {
			return true
		}
	}
	return false
}

func TestTestsNamedByTheGuidesExist(t *testing.T) {
	modules := modules(t)
	for path, least := range map[string]int{"CONTRIBUTING.md": 3, "e2e/README.md": 100} {
		named := namedTest.FindAllStringSubmatch(read(t, path), -1)
		if len(named) < least {
			t.Errorf("%s names %d tests", path, len(named))
		}
		for _, found := range named {
			if !hasTest(modules, strings.TrimSuffix(found[1], "::"), found[2]) {
				t.Errorf("%s: %s%s does not exist", path, found[1], found[2])
			}
		}
		for _, found := range namedGoTest.FindAllStringSubmatch(read(t, path), -1) {
			if !slices.ContainsFunc(matching(t, "devenv/tests/*/*_test.go"), func(file string) bool {
				return strings.Contains(read(t, file), "func "+found[1]+"(")
			}) {
				t.Errorf("%s: %s does not exist", path, found[1])
			}
		}
	}
}

func TestATestInAnotherModuleIsMissed(t *testing.T) {
	modules := map[string]string{"operator::inject::tests": "fn sidecar_is_native()", "e2e::e2e::operating": "fn pods_start()"}
	for name, exists := range map[string]bool{
		"operator::inject sidecar_is_native": true, "inject::tests sidecar_is_native": true, "operating pods_start": true,
		"operating sidecar_is_native": false, "ject sidecar_is_native": false, "inject sidecar_is": false,
	} {
		module, test, _ := strings.Cut(name, " ")
		if hasTest(modules, module, test) != exists {
			t.Errorf("%s exists: %t", name, !exists)
		}
	}
}

var thread = regexp.MustCompile(`\[([\w.-]+/[\w.-]+)#(\d+)\]\(https://github\.com/([\w.-]+/[\w.-]+)/(?:issues|pull)/(\d+)\)`)

// A row has a complaint, its threads, and tests or the reason why there are none.
func TestRowsOfComplaintsAreWhole(t *testing.T) {
	_, table, _ := strings.Cut(read(t, "e2e/README.md"), "## Public complaints")
	rows, seen := 0, map[string]bool{}
	for line := range strings.Lines(table) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "| ---") || line == "| Complaint | Thread | Tests |" {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(line, "|"), " | ")
		if len(cells) != 3 {
			t.Errorf("%d cells: %s", len(cells), line)
			continue
		}
		complaint, threads, tests := strings.TrimSpace(cells[0]), strings.Split(cells[1], ", "), strings.TrimSpace(cells[2])
		if seen[complaint] {
			t.Errorf("%q is there twice", complaint)
		}
		seen[complaint] = true
		for _, one := range threads {
			parts := thread.FindStringSubmatch(one)
			if parts == nil || parts[0] != one || parts[1] != parts[3] || parts[2] != parts[4] {
				t.Errorf("%q is no thread: %s", one, line)
			}
		}
		if !namedTest.MatchString(tests) && !namedGoTest.MatchString(tests) && !strings.HasPrefix(tests, "– ") {
			t.Errorf("neither a test nor a reason: %s", line)
		}
	}
	if rows < 60 {
		t.Errorf("%d rows", rows)
	}
}
