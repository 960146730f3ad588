package chart

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const (
	deployment = "Deployment/larder-operator"
	pod        = "spec.template.spec."
	container  = pod + "containers.0."
)

// An expectation is the value of a path in an object, as fmt prints it; "<nil>" where there is none.
type expectation struct{ object, path, value string }

func TestValuesBecomeFields(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	for name, test := range map[string]struct {
		values   []string
		expected []expectation
	}{
		"defaults": {nil, []expectation{
			{deployment, container + "image", "larder/operator:0.1.0"},
			{deployment, container + "env.2.value", "larder/sidecar:0.1.0"},
			{deployment, pod + "hostNetwork", "<nil>"},
			{deployment, pod + "imagePullSecrets", "<nil>"},
			{deployment, pod + "priorityClassName", "<nil>"},
			{deployment, pod + "securityContext.runAsUser", "65532"},
			{deployment, "spec.revisionHistoryLimit", "<nil>"},
			{deployment, "spec.strategy.rollingUpdate", "map[maxSurge:1 maxUnavailable:0]"},
			{"Service/larder-webhook", "spec.ports", "[map[name:webhook port:443 targetPort:webhook]]"},
			{"NetworkPolicy/larder-operator", "kind", "<nil>"},
			{"ServiceMonitor/larder-operator", "kind", "<nil>"},
			{"PodMonitor/larder-sidecars", "kind", "<nil>"},
		}},
		"images by digest, which takes precedence over the tag": {
			[]string{fmt.Sprintf(`image.operator={"digest": %q, "tag": "1"}`, digest), fmt.Sprintf(`image.sidecar.digest=%q`, digest)},
			[]expectation{
				{deployment, container + "image", "larder/operator@" + digest},
				{deployment, container + "env.2.value", "larder/sidecar@" + digest},
				{"Pod/larder-check", "spec.containers.0.image", "larder/operator@" + digest},
			},
		},
		"images of a registry": {
			[]string{`image.operator.registry="mirror:5000/library"`, `image.sidecar={"registry": "mirror", "tag": "2"}`},
			[]expectation{
				{deployment, container + "image", "mirror:5000/library/larder/operator:0.1.0"},
				{deployment, container + "env.2.value", "mirror/larder/sidecar:2"},
			},
		},
		"images of the registry of all charts": {
			[]string{`image.operator.registry="mirror"`, `global.imageRegistry="global:5000"`},
			[]expectation{
				{deployment, container + "image", "global:5000/larder/operator:0.1.0"},
				{deployment, container + "env.2.value", "global:5000/larder/sidecar:0.1.0"},
			},
		},
		"pull secrets of the operator": {
			[]string{`imagePullSecrets=[{"name": "registry"}]`},
			[]expectation{
				{deployment, pod + "imagePullSecrets", "[map[name:registry]]"},
				{"Pod/larder-check", "spec.imagePullSecrets", "[map[name:registry]]"},
			},
		},
		"the network of the node": {
			[]string{`hostNetwork=true`, `webhook.port=10443`, `health.port=10081`},
			[]expectation{
				{deployment, pod + "hostNetwork", "true"},
				{deployment, pod + "dnsPolicy", "ClusterFirstWithHostNet"},
				{deployment, container + "ports", "[map[containerPort:10443 name:webhook] map[containerPort:10081 name:health]]"},
				{deployment, "spec.strategy.rollingUpdate", "map[maxSurge:0 maxUnavailable:1]"},
				{"Service/larder-webhook", "spec.ports.0.targetPort", "webhook"},
				{"Pod/larder-check", "spec.dnsPolicy", "ClusterFirstWithHostNet"},
			},
		},
		"the Deployment": {
			[]string{
				`updateStrategy={"type": "Recreate"}`, `revisionHistoryLimit=0`, `priorityClassName="system-cluster-critical"`,
				`deploymentAnnotations={"a": "1"}`, `podAnnotations={"b": "2"}`, `podLabels={"c": "3"}`, `commonLabels={"team": "cache"}`,
				`podSecurityContext={"runAsUser": null, "runAsGroup": null}`,
			},
			[]expectation{
				{deployment, "spec.strategy", "map[type:Recreate]"},
				{deployment, "spec.revisionHistoryLimit", "0"},
				{deployment, pod + "priorityClassName", "system-cluster-critical"},
				{deployment, "metadata.annotations.a", "1"},
				{deployment, "spec.template.metadata.annotations.b", "2"},
				{deployment, "spec.template.metadata.labels.c", "3"},
				{deployment, "spec.template.metadata.labels.team", "cache"},
				{deployment, "spec.selector.matchLabels.team", "<nil>"},
				{deployment, pod + "securityContext", "map[runAsNonRoot:true seccompProfile:map[type:RuntimeDefault]]"},
				{"Service/larder-webhook", "spec.selector.team", "<nil>"},
			},
		},
		"a service account of the chart": {
			[]string{`serviceAccount={"name": "cache", "annotations": {"iam": "role"}}`},
			[]expectation{
				{"ServiceAccount/cache", "metadata.annotations.iam", "role"},
				{deployment, pod + "serviceAccountName", "cache"},
				{"Pod/larder-check", "spec.serviceAccountName", "cache"},
				{"ClusterRoleBinding/larder-operator", "subjects.0.name", "cache"},
				{"RoleBinding/larder-operator", "subjects.0.name", "cache"},
				{"ClusterRoleBinding/larder-check", "subjects.0.name", "cache"},
			},
		},
		"a service account of others": {
			[]string{`serviceAccount={"create": false, "name": "cache"}`},
			[]expectation{
				{"ServiceAccount/cache", "kind", "<nil>"},
				{deployment, pod + "serviceAccountName", "cache"},
			},
		},
		"monitors": {
			[]string{`serviceMonitor={"enabled": true, "interval": "15s", "labels": {"release": "p"}}`, `podMonitor={"enabled": true, "interval": "1m"}`},
			[]expectation{
				{"ServiceMonitor/larder-operator", "spec.endpoints", "[map[interval:15s port:metrics]]"},
				{"ServiceMonitor/larder-operator", "metadata.labels.release", "p"},
				{"Service/larder-webhook", "spec.ports.1", "map[name:metrics port:8081 targetPort:health]"},
				{"PodMonitor/larder-sidecars", "spec.podMetricsEndpoints", "[map[interval:1m port:larder-admin]]"},
				{"PodMonitor/larder-sidecars", "spec.namespaceSelector.any", "true"},
				{"PodMonitor/larder-sidecars", "spec.selector.matchExpressions.0.key", "larder.dev/policy"},
			},
		},
		"network policies": {
			[]string{
				`networkPolicy={"enabled": true, "apiServerPorts": [6443], "metricsFrom": [{"podSelector": {}}], "sidecarNamespaces": ["shop"]}`,
				`webhook.port=10443`, `sidecar.adminPort=25000`,
			},
			[]expectation{
				{"NetworkPolicy/larder-operator", "spec.ingress.0", "map[ports:[map[port:10443 protocol:TCP]]]"},
				{"NetworkPolicy/larder-operator", "spec.ingress.1", "map[from:[map[podSelector:map[]]] ports:[map[port:8081 protocol:TCP]]]"},
				{"NetworkPolicy/larder-operator", "spec.egress.0.ports", "[map[port:53 protocol:UDP] map[port:53 protocol:TCP]]"},
				{"NetworkPolicy/larder-operator", "spec.egress.1.ports", "[map[port:6443 protocol:TCP]]"},
				{"NetworkPolicy/larder-operator", "spec.egress.2.ports", "[map[port:10443 protocol:TCP]]"},
				{"NetworkPolicy/larder-operator", "spec.egress.3.ports", "[map[port:25000 protocol:TCP]]"},
				{"NetworkPolicy/shop/larder-sidecars", "spec.ingress.0.ports", "[map[port:25000 protocol:TCP]]"},
				{"NetworkPolicy/shop/larder-sidecars", "spec.ingress.0.from.1.podSelector.matchExpressions.0.key", "larder.dev/policy"},
				{"NetworkPolicy/shop/larder-sidecars", "spec.ingress.0.from.2", "map[podSelector:map[]]"},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			objects := render(t, test.values...)
			for _, expected := range test.expected {
				if found := fmt.Sprint(objects[expected.object].at(expected.path)); found != expected.value {
					t.Errorf("%s: %s is %s, not %s", expected.object, expected.path, found, expected.value)
				}
			}
		})
	}
}

func TestValuesBecomeArgumentsAndEnvironment(t *testing.T) {
	objects := render(t, `sidecar.imagePullSecrets=[{"name": "one"}, {"name": "two"}]`, `webhook={"port": 10443, "timeoutSeconds": 5}`,
		`health.port=10081`, `extraArgs=["--rollout-timeout-seconds=7"]`, `extraEnv=[{"name": "RUST_LOG", "value": "debug"}]`)
	arguments := fmt.Sprint(objects[deployment].at(container + "args"))
	for _, argument := range []string{
		"--sidecar-image-pull-secrets=one,two ", "--webhook-listen=:10443 ", "--health-listen=:10081 ", "--webhook-timeout-seconds=5 ",
		"--rollout-timeout-seconds=7]",
	} {
		if !strings.Contains(arguments, argument) {
			t.Errorf("the arguments lack %s: %s", argument, arguments)
		}
	}
	env, _ := objects[deployment].at(container + "env").([]any)
	if !slices.ContainsFunc(env, func(one any) bool { return fmt.Sprint(one) == "map[name:RUST_LOG value:debug]" }) {
		t.Errorf("the environment lacks RUST_LOG: %v", env)
	}
	if text := fmt.Sprint(render(t)[deployment].at(container + "args")); strings.Contains(text, "pull-secrets") {
		t.Errorf("there are pull secrets by default: %s", text)
	}
}

// Account names in expressions must follow the service account, or the confinement would hold for nobody.
func TestTheConfinedAccountIsThatOfTheOperator(t *testing.T) {
	text, err := template(`serviceAccount.name="cache"`)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, "system:serviceaccount:larder-system:cache") || strings.Contains(text, "system:serviceaccount:larder-system:larder-operator") {
		t.Error("an expression names another account than the operator's")
	}
}

// The Service of the webhook and the budget select by labels: the pod of `helm test` must not be one of the operator's.
func TestThePodOfTheTestIsNotSelected(t *testing.T) {
	objects := render(t, `networkPolicy.enabled=true`)
	labels, _ := objects["Pod/larder-check"].at("metadata.labels").(map[string]any)
	for name, path := range map[string]string{
		"Service/larder-webhook":              "spec.selector",
		deployment:                            "spec.selector.matchLabels",
		"PodDisruptionBudget/larder-operator": "spec.selector.matchLabels",
		"NetworkPolicy/larder-operator":       "spec.podSelector.matchLabels",
	} {
		selector, _ := objects[name].at(path).(map[string]any)
		if len(selector) == 0 {
			t.Errorf("%s selects everything", name)
		}
		selects := true
		for key, value := range selector {
			selects = selects && labels[key] == value
		}
		if selects {
			t.Errorf("%s selects the pod of the test", name)
		}
		operator := objects[deployment].at("spec.template.metadata.labels").(map[string]any)
		for key, value := range selector {
			if operator[key] != value {
				t.Errorf("%s does not select the operator's pods", name)
			}
		}
	}
}

func TestObjectsOfTheTestGoWithIt(t *testing.T) {
	hooks := 0
	for name, object := range render(t) {
		annotations, _ := object.at("metadata.annotations").(map[string]any)
		if annotations["helm.sh/hook"] == nil {
			continue
		}
		hooks++
		policy := fmt.Sprint(annotations["helm.sh/hook-delete-policy"])
		if annotations["helm.sh/hook"] != "test" || !strings.Contains(policy, "hook-succeeded") {
			t.Errorf("%s stays behind: %v", name, annotations)
		}
		if !strings.HasPrefix(name, "Pod/") && !strings.Contains(policy, "hook-failed") {
			t.Errorf("%s grants rights after a failed test: %v", name, annotations)
		}
	}
	if hooks != 5 {
		t.Errorf("there are %d hooks", hooks)
	}
}

// What upgrades keep by `--reuse-values` are the values of the earlier chart, without those that came later.
func TestValuesOfAnEarlierChartRenderAsTheDefaults(t *testing.T) {
	later := []string{
		"rollout", "health", "hostNetwork", "podSecurityContext", "priorityClassName", "updateStrategy", "revisionHistoryLimit", "commonLabels",
		"deploymentAnnotations", "podAnnotations", "podLabels", "serviceAccount", "extraArgs", "extraEnv", "serviceMonitor", "podMonitor",
		"networkPolicy", "global", "webhook.port", "webhook.timeoutSeconds", "webhook.clientCA", "watchNamespaces", "sidecar.imagePullSecrets", "image.operator.digest",
		"image.operator.registry",
	}
	var without []string
	for _, path := range later {
		without = append(without, path+"=null")
	}
	if now, before := render(t), render(t, without...); !reflect.DeepEqual(now, before) {
		t.Errorf("without later values: %v", before[deployment])
	}
}
