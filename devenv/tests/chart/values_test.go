package chart

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// leaves returns the paths of the values that are not mappings with members, in order.
func leaves(node *yaml.Node, prefix string) (paths []string) {
	for i := 0; i+1 < len(node.Content); i += 2 {
		path, value := prefix+node.Content[i].Value, node.Content[i+1]
		if value.Kind == yaml.MappingNode && len(value.Content) > 0 && value.Style&yaml.FlowStyle == 0 {
			paths = append(paths, leaves(value, path+".")...)
		} else {
			paths = append(paths, path)
		}
	}
	return paths
}

// mappings returns the paths of mappings with members, the whole one included.
func mappings(node *yaml.Node, prefix string) []string {
	paths := []string{prefix}
	for i := 0; i+1 < len(node.Content); i += 2 {
		if value := node.Content[i+1]; value.Kind == yaml.MappingNode && len(value.Content) > 0 {
			paths = append(paths, mappings(value, prefix+node.Content[i].Value+".")...)
		}
	}
	return paths
}

// A change is another value of a leaf, and the values without which it has no effect.
type change struct {
	value string
	with  []string
}

// changes has another value of each leaf of values.yaml.
var changes = map[string]change{
	"global.imageRegistry":               {value: `"mirror"`},
	"image.operator.registry":            {value: `"mirror"`},
	"image.operator.repository":          {value: `"another"`},
	"image.operator.tag":                 {value: `"2"`},
	"image.operator.digest":              {value: `"sha256:` + strings.Repeat("0", 64) + `"`},
	"image.operator.pullPolicy":          {value: `"Always"`},
	"image.sidecar.registry":             {value: `"mirror"`},
	"image.sidecar.repository":           {value: `"another"`},
	"image.sidecar.tag":                  {value: `"2"`},
	"image.sidecar.digest":               {value: `"sha256:` + strings.Repeat("0", 64) + `"`},
	"image.sidecar.pullPolicy":           {value: `"Always"`},
	"image.redirect.registry":            {value: `"mirror"`, with: []string{`capture.redirect.enabled=true`}},
	"image.redirect.repository":          {value: `"another"`, with: []string{`capture.redirect.enabled=true`}},
	"image.redirect.tag":                 {value: `"2"`, with: []string{`capture.redirect.enabled=true`}},
	"image.redirect.digest":              {value: `"sha256:` + strings.Repeat("0", 64) + `"`, with: []string{`capture.redirect.enabled=true`}},
	"image.redirect.pullPolicy":          {value: `"Always"`, with: []string{`capture.redirect.enabled=true`}},
	"imagePullSecrets":                   {value: `[{"name": "registry"}]`},
	"watchNamespaces":                    {value: `["shop"]`},
	"replicas":                           {value: `3`},
	"webhook.failurePolicy":              {value: `"Fail"`},
	"webhook.port":                       {value: `10443`},
	"webhook.timeoutSeconds":             {value: `5`},
	"webhook.clientCA.configMap":         {value: `"clients"`},
	"webhook.clientCA.secret":            {value: `"clients"`},
	"webhook.clientCA.key":               {value: `"clients.crt"`, with: []string{`webhook.clientCA.secret="clients"`}},
	"health.port":                        {value: `10081`},
	"hostNetwork":                        {value: `true`},
	"sidecar.imagePullSecrets":           {value: `[{"name": "registry"}]`},
	"sidecar.dataPort":                   {value: `25800`},
	"sidecar.applicationPort":            {value: `25810`},
	"sidecar.adminPort":                  {value: `25890`},
	"sidecar.drainSeconds":               {value: `6`},
	"capture.redirect.enabled":           {value: `true`},
	"rollout.maxConcurrent":              {value: `3`},
	"rollout.timeoutSeconds":             {value: `60`},
	"identityHeaders":                    {value: `["x-shop-*"]`},
	"policies.maxMemory":                 {value: `"256Mi"`},
	"policies.maxCPU":                    {value: `"500m"`},
	"policies.maxTTL":                    {value: `"24h"`},
	"policies.maxStale":                  {value: `"1h"`},
	"policies.captureModes":              {value: `["Auto"]`},
	"policies.sources.allowedHosts":      {value: `["*.example.com"]`},
	"policies.sources.allowedNetworks":   {value: `["10.0.0.0/8"]`},
	"policies.sources.deniedNetworks":    {value: `[]`},
	"resources.requests":                 {value: `{"cpu": "1"}`},
	"resources.limits":                   {value: `{"memory": "1Gi"}`},
	"podSecurityContext.runAsNonRoot":    {value: `false`},
	"podSecurityContext.runAsUser":       {value: `null`},
	"podSecurityContext.runAsGroup":      {value: `null`},
	"podSecurityContext.seccompProfile":  {value: `null`},
	"priorityClassName":                  {value: `"system-cluster-critical"`},
	"updateStrategy":                     {value: `{"type": "Recreate"}`},
	"revisionHistoryLimit":               {value: `2`},
	"commonLabels":                       {value: `{"a": "b"}`},
	"deploymentAnnotations":              {value: `{"a": "b"}`},
	"podAnnotations":                     {value: `{"a": "b"}`},
	"podLabels":                          {value: `{"a": "b"}`},
	"serviceAccount.create":              {value: `false`},
	"serviceAccount.name":                {value: `"cache"`},
	"serviceAccount.annotations":         {value: `{"a": "b"}`},
	"extraArgs":                          {value: `["--drain-seconds=6"]`},
	"extraEnv":                           {value: `[{"name": "RUST_LOG", "value": "debug"}]`},
	"podDisruptionBudget.enabled":        {value: `false`},
	"podDisruptionBudget.minAvailable":   {value: `"50%"`},
	"dashboard.enabled":                  {value: `false`},
	"dashboard.labels":                   {value: `{"a": "b"}`},
	"dashboard.labels.grafana_dashboard": {value: `"2"`},
	"serviceMonitor.enabled":             {value: `true`},
	"serviceMonitor.interval":            {value: `"15s"`, with: []string{`serviceMonitor.enabled=true`}},
	"serviceMonitor.labels":              {value: `{"a": "b"}`, with: []string{`serviceMonitor.enabled=true`}},
	"podMonitor.enabled":                 {value: `true`},
	"podMonitor.interval":                {value: `"15s"`, with: []string{`podMonitor.enabled=true`}},
	"podMonitor.labels":                  {value: `{"a": "b"}`, with: []string{`podMonitor.enabled=true`}},
	"networkPolicy.enabled":              {value: `true`},
	"networkPolicy.apiServerPorts":       {value: `[16443]`, with: []string{`networkPolicy.enabled=true`}},
	"networkPolicy.metricsFrom":          {value: `[{"podSelector": {}}]`, with: []string{`networkPolicy.enabled=true`}},
	"networkPolicy.sidecarNamespaces":    {value: `["shop"]`},
	"nodeSelector":                       {value: `{"a": "b"}`},
	"tolerations":                        {value: `[{"operator": "Exists"}]`},
	"affinity":                           {value: `{"nodeAffinity": {}}`},
	"topologySpreadConstraints":          {value: `[]`},
}

func TestEveryValueHasAnEffect(t *testing.T) {
	for _, path := range leaves(valuesOf(t), "") {
		change, isKnown := changes[path]
		if !isKnown {
			t.Errorf("%s: add another value of it to this test", path)
			continue
		}
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			before, err := template(change.with...)
			if err != nil {
				t.Fatal(err)
			}
			after, err := template(append(change.with, path+"="+change.value)...)
			if err != nil {
				t.Fatal(err)
			}
			if before == after {
				t.Errorf("%s=%s changes nothing", path, change.value)
			}
		})
	}
}

func TestMisspeltValuesAreRefused(t *testing.T) {
	// Values of other charts, fields of Kubernetes' own, quantities and labels.
	open := []string{"global.", "podSecurityContext.", "dashboard.labels.", "resources.requests.", "resources.limits."}
	for _, path := range mappings(valuesOf(t), "") {
		if slices.ContainsFunc(open, func(prefix string) bool { return strings.HasPrefix(path, prefix) }) {
			continue
		}
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			_, err := template(path + `misspelt="a"`)
			if err == nil || !strings.Contains(err.Error(), "misspelt") {
				t.Errorf("%smisspelt: %v", path, err)
			}
		})
	}
}

// declared returns the paths of the values that a schema names, of mappings only those without members of their own.
func declared(schema, definitions map[string]any, prefix string) (paths []string) {
	if reference, isReference := schema["$ref"].(string); isReference {
		schema, _ = definitions[strings.TrimPrefix(reference, "#/definitions/")].(map[string]any)
	}
	properties, _ := schema["properties"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		paths = append(paths, declared(properties[name].(map[string]any), definitions, strings.TrimPrefix(prefix+"."+name, "."))...)
	}
	if len(paths) == 0 {
		return []string{prefix}
	}
	return paths
}

func TestTheSchemaNamesOnlyValuesThatAreDocumented(t *testing.T) {
	var schema map[string]any
	if err := json.Unmarshal(readFile(t, folder+"/values.schema.json"), &schema); err != nil {
		t.Fatal(err)
	}
	documented := leaves(valuesOf(t), "")
	for _, path := range declared(schema, schema["definitions"].(map[string]any), "") {
		covers := func(leaf string) bool {
			return strings.HasPrefix(path+".", leaf+".") || strings.HasPrefix(leaf, path+".")
		}
		if !slices.ContainsFunc(documented, covers) {
			t.Errorf("values.yaml lacks %s", path)
		}
	}
}

func TestValuesOfAWrongFormAreRefused(t *testing.T) {
	wrong := map[string]string{
		"image.operator.digest":        `"0a0b"`,
		"image.sidecar.digest":         `"sha256:1"`,
		"image.sidecar.registry":       `"mirror/"`,
		"imagePullSecrets":             `["registry"]`,
		"sidecar.imagePullSecrets":     `[{"name": "a,b"}]`,
		"webhook.port":                 `443`,
		"webhook.timeoutSeconds":       `31`,
		"webhook.failurePolicy":        `"fail"`,
		"webhook.clientCA.key":         `""`,
		"health.port":                  `9443`,
		"hostNetwork":                  `"true"`,
		"sidecar.adminPort":            `24801`,
		"updateStrategy":               `{"type": "Rolling"}`,
		"extraArgs":                    `["verbose"]`,
		"extraEnv":                     `[{"value": "a"}]`,
		"serviceMonitor.interval":      `"often"`,
		"networkPolicy.apiServerPorts": `[]`,
		"networkPolicy.metricsFrom":    `[{"pods": {}}]`,
		"commonLabels":                 `{"app.kubernetes.io/name": "another"}`,
		"podLabels":                    `{"a": 1}`,
		"watchNamespaces":              `["Shop"]`,
		"replicas":                     `0`,
	}
	for _, path := range slices.Sorted(maps.Keys(wrong)) {
		if _, err := template(path + "=" + wrong[path]); err == nil {
			t.Errorf("%s=%s passes", path, wrong[path])
		}
	}
}
