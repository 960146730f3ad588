package tilt

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const (
	root    = "../../.."
	context = "kind-larder"
)

// asked is what the Tiltfile asks Tilt for.
type asked struct {
	images, resources, local []call
	objects                  []object
}

func askedFor(t *testing.T) asked {
	t.Helper()
	calls, err := evaluate("Tiltfile", readFile(t, "Tiltfile"), context)
	if err != nil {
		t.Fatal(err)
	}
	var all asked
	for _, call := range calls {
		switch call.builtin {
		case "custom_build":
			all.images = append(all.images, call)
		case "k8s_resource":
			all.resources = append(all.resources, call)
		case "local_resource":
			all.local = append(all.local, call)
		case "k8s_yaml":
			all.objects = append(all.objects, objectsOf(t, call)...)
		}
	}
	return all
}

func TestBuildsAnImageForEveryProgramThatItDeploys(t *testing.T) {
	asked := askedFor(t)
	var refs []string
	for _, image := range asked.images {
		ref := image.text("ref")
		refs = append(refs, ref)
		for _, path := range image.texts("deps") {
			exists(t, path)
		}
		refFile := image.text("outputs_image_ref_to")
		if command := image.text("command"); !strings.Contains(command, "'^"+ref+":'") || !strings.HasSuffix(command, "> "+refFile) {
			t.Errorf("%s: the command does not write the image's name to %s: %s", ref, refFile, command)
		}
		if !image.yes("skips_local_docker") || !image.yes("disable_push") {
			t.Errorf("%s: `./dev images` loads the image, Tilt must not", ref)
		}
		if !slices.ContainsFunc(asked.objects, func(object object) bool {
			inContainer, inEnv := object.holds(ref)
			return inContainer || inEnv && image.yes("match_in_env_vars")
		}) {
			t.Errorf("%s is built, and nothing runs it", ref)
		}
	}
	if want := []string{"larder/operator", "larder/sidecar", "larder/example-shop"}; !reflect.DeepEqual(refs, want) {
		t.Errorf("images: %v, not %v", refs, want)
	}
	if info := exists(t, "dev"); info != nil && info.Mode()&0o111 == 0 {
		t.Error("./dev can not be run")
	}
}

func TestEveryImageOfOursIsBuilt(t *testing.T) {
	asked := askedFor(t)
	for _, object := range asked.objects {
		for _, container := range object.Spec.Template.Spec.Containers {
			name, _, _ := strings.Cut(container.Image, ":")
			if strings.HasPrefix(name, "larder/") && !slices.ContainsFunc(asked.images, func(image call) bool { return image.text("ref") == name }) {
				t.Errorf("%s runs %s, which nothing builds", object.Metadata.Name, name)
			}
		}
	}
}

func TestDeploysLarderTheShopAndItsPolicy(t *testing.T) {
	asked := askedFor(t)
	for _, selector := range []string{
		"larder-system:namespace", "cachepolicies.larder.dev:customresourcedefinition", "larder-operator:deployment:larder-system",
		"shop:namespace", "shop:deployment:shop", "shop:service:shop", "shop:cachepolicy:shop",
	} {
		one(t, asked.objects, selector)
	}
}

func TestResourcesNameWhatIsThere(t *testing.T) {
	asked := askedFor(t)
	var names []string
	for _, object := range asked.objects {
		if object.isWorkload() {
			names = append(names, object.Metadata.Name)
		}
	}
	for _, local := range asked.local {
		names = append(names, local.text("name"))
	}
	for _, resource := range asked.resources {
		workload, newName := resource.text("workload"), resource.text("new_name")
		if workload != "" && !slices.Contains(names, workload) {
			t.Errorf("no workload is called %s", workload)
		}
		if workload == "" && (newName == "" || len(resource.texts("objects")) == 0) {
			t.Errorf("a resource without a workload needs new_name and objects: %v", resource.arguments)
		}
		if newName != "" {
			names = append(names, newName)
		}
		for _, selector := range resource.texts("objects") {
			one(t, asked.objects, selector)
		}
		if len(resource.texts("labels")) == 0 {
			t.Errorf("%s%s has no label", workload, newName)
		}
	}
	for _, resource := range slices.Concat(asked.resources, asked.local) {
		for _, dependency := range resource.texts("resource_deps") {
			if !slices.Contains(names, dependency) {
				t.Errorf("%v depends on %s, which is not there", resource.arguments, dependency)
			}
		}
	}
}

func TestThePolicyComesAfterWhatItIsFor(t *testing.T) {
	for _, resource := range askedFor(t).resources {
		if resource.text("new_name") == "policy" {
			if want := []string{"larder-operator", "shop"}; !reflect.DeepEqual(resource.texts("resource_deps"), want) {
				t.Errorf("the policy depends on %v, not %v", resource.texts("resource_deps"), want)
			}
			return
		}
	}
	t.Error("there is no resource for the policy")
}

func TestForwardsPorts(t *testing.T) {
	forwarded := map[string]map[int]int{}
	local := map[int]bool{}
	for _, resource := range askedFor(t).resources {
		for _, value := range resource.list("port_forwards") {
			forward, ok := value.(recorded)
			if !ok {
				t.Fatalf("%v is not made by port_forward", value)
			}
			from, to := forward.call.number("local_port"), forward.call.number("container_port")
			if local[from] {
				t.Errorf("local port %d is forwarded twice", from)
			}
			local[from] = true
			name := resource.text("workload")
			if forwarded[name] == nil {
				forwarded[name] = map[int]int{}
			}
			forwarded[name][from] = to
		}
	}
	want := map[string]map[int]int{
		"larder-operator": {8081: 8081},
		"shop":            {8080: 24800, 8090: 8080, 24890: 24890},
	}
	if !reflect.DeepEqual(forwarded, want) {
		t.Errorf("forwards %v, not %v", forwarded, want)
	}
}

func TestRefusesAnotherCluster(t *testing.T) {
	_, err := evaluate("Tiltfile", readFile(t, "Tiltfile"), "production")
	if err == nil || !strings.Contains(err.Error(), "production") || !strings.Contains(err.Error(), "./dev up") {
		t.Errorf("in another context: %v", err)
	}
}

func TestWhatTiltDoesNotHaveIsRefused(t *testing.T) {
	for _, source := range []string{
		"k8s_yml('a.yaml')",
		"k8s_yaml(path = 'a.yaml')",
		"k8s_yaml()",
		"k8s_yaml('a.yaml', yaml = 'b.yaml')",
		"k8s_context('a')",
	} {
		if _, err := evaluate("Tiltfile", source, context); err == nil {
			t.Errorf("%s is accepted", source)
		}
	}
}

func exists(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(filepath.Join(root, path))
	if err != nil {
		t.Error(err)
	}
	return info
}

func one(t *testing.T, objects []object, selector string) {
	t.Helper()
	found := 0
	for _, object := range objects {
		if object.matches(selector) {
			found++
		}
	}
	if found != 1 {
		t.Errorf("%s names %d objects, not one", selector, found)
	}
}
