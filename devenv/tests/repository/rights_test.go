package repository

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// role is what the test reads of a role.
type role struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Rules    []struct{ Resources, Verbs []string }
}

// roles renders the chart and returns the operator's roles.
func roles(t *testing.T, arguments ...string) []role {
	t.Helper()
	program, err := exec.LookPath("helm")
	if err != nil {
		t.Fatalf("%v: this test renders the chart; `./dev test unit` brings helm along", err)
	}
	all := append([]string{"template", "larder", filepath.Join(root, "charts/larder"), "--namespace", "larder-system"}, arguments...)
	text, err := exec.Command(program, all...).Output()
	if err != nil {
		t.Fatal(err)
	}
	var found []role
	for documents := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var next role
		if err := documents.Decode(&next); errors.Is(err, io.EOF) {
			return found
		} else if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(next.Kind, "Role") && strings.HasPrefix(next.Metadata.Name, "larder-operator") {
			found = append(found, next)
		}
	}
}

// granted returns every right of roles, as RESOURCE VERB.
func granted(roles []role) map[string]bool {
	rights := map[string]bool{}
	for _, role := range roles {
		for _, rule := range role.Rules {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					rights[resource+" "+verb] = true
				}
			}
		}
	}
	return rights
}

var rightRow = regexp.MustCompile("(?m)^\\| `([a-z/]+)`[^:|]*: ([a-z, ]+?)(, only [^|]*)? \\|")

func TestSecurityPageHasEachRightOfTheOperator(t *testing.T) {
	documented := map[string]bool{}
	for _, row := range rightRow.FindAllStringSubmatch(read(t, "docs/security.md"), -1) {
		for verb := range strings.SplitSeq(row[2], ", ") {
			documented[row[1]+" "+verb] = true
		}
	}
	rights := granted(roles(t, "--set", "capture.redirect.enabled=true"))
	for _, right := range slices.Sorted(maps.Keys(rights)) {
		if !documented[right] {
			t.Errorf("docs/security.md does not say why the operator needs: %s", right)
		}
		if strings.Contains(right, "*") {
			t.Errorf("the operator has every right of a kind: %s", right)
		}
	}
	for _, right := range slices.Sorted(maps.Keys(documented)) {
		if !rights[right] {
			t.Errorf("docs/security.md has a right that no role grants: %s", right)
		}
	}
}

func TestOperatorOfSomeNamespacesHasTheSameRightsThereAndHardlyAnyElsewhere(t *testing.T) {
	everywhere := granted(roles(t))
	some := roles(t, "--set", "watchNamespaces={shop,web}")
	namespaces := map[string]map[string]bool{}
	for i, one := range some {
		namespaces[one.Metadata.Namespace] = granted(some[i : i+1])
	}
	for right := range namespaces[""] {
		if !strings.HasPrefix(right, "mutatingwebhookconfigurations ") && right != "clusterroles get" {
			t.Errorf("a right in the whole cluster: %s", right)
		}
	}
	for _, namespace := range []string{"shop", "web"} {
		for right := range everywhere {
			isElsewhere := namespaces[""][right] || strings.HasPrefix(right, "leases ") || strings.HasPrefix(right, "secrets ")
			if !namespaces[namespace][right] && !isElsewhere {
				t.Errorf("no right in %s: %s", namespace, right)
			}
		}
	}
}
