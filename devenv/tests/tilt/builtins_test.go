package tilt

import (
	"fmt"
	"slices"
	"strings"

	"go.starlark.net/lib/json"
	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// signatures has the parameters of Tilt's builtins, in their documented order; those up to "/" must be given. What is not
// here is unknown to the test: before the Tiltfile uses another one, it is added as the documentation has it.
var signatures = map[string][]string{
	"custom_build": {"ref", "command", "deps", "/", "tag", "disable_push", "skips_local_docker", "live_update",
		"match_in_env_vars", "ignore", "entrypoint", "command_bat_val", "outputs_image_ref_to", "command_bat", "image_deps",
		"env", "dir"},
	"encode_yaml": {"obj", "/"},
	"fail":        {"msg", "/"},
	"helm":        {"pathToChartDir", "/", "name", "namespace", "values", "set", "kube_version", "skip_crds"},
	"k8s_context": {"/"},
	"k8s_resource": {"/", "workload", "new_name", "port_forwards", "extra_pod_selectors", "trigger_mode", "resource_deps",
		"objects", "auto_init", "pod_readiness", "links", "labels", "discovery_strategy"},
	"k8s_yaml":  {"yaml", "/", "allow_duplicates"},
	"kustomize": {"pathToDir", "/", "kustomize_bin", "flags"},
	"local_resource": {"name", "cmd", "/", "deps", "trigger_mode", "resource_deps", "ignore", "auto_init", "serve_cmd",
		"cmd_bat", "serve_cmd_bat", "allow_parallel", "links", "labels", "env", "serve_env", "readiness_probe", "dir",
		"serve_dir"},
	"port_forward": {"local_port", "/", "container_port", "name", "link_path", "host"},
}

// constants are Tilt's; here each is its own name.
var constants = []string{"TRIGGER_MODE_AUTO", "TRIGGER_MODE_MANUAL"}

// call is one call of a builtin, by the documented names of its parameters.
type call struct {
	builtin   string
	arguments map[string]starlark.Value
}

func (c call) text(parameter string) string {
	text, _ := starlark.AsString(c.arguments[parameter])
	return text
}

func (c call) yes(parameter string) bool {
	value, given := c.arguments[parameter]
	return given && bool(value.Truth())
}

// list is the argument's members; one that is no list counts as its only member, as Tilt has it.
func (c call) list(parameter string) []starlark.Value {
	value, given := c.arguments[parameter]
	if !given {
		return nil
	}
	if list, ok := value.(*starlark.List); ok {
		return slices.Collect(list.Elements())
	}
	return []starlark.Value{value}
}

func (c call) texts(parameter string) []string {
	var texts []string
	for _, value := range c.list(parameter) {
		text, _ := starlark.AsString(value)
		texts = append(texts, text)
	}
	return texts
}

func (c call) number(parameter string) int {
	number, _ := starlark.AsInt32(c.arguments[parameter])
	return number
}

// recorded is a builtin's result, and the call that it came from.
type recorded struct {
	starlark.Value
	call call
}

// evaluate runs a Tiltfile in a context of kubectl's, and returns the calls that it made.
func evaluate(name string, source any, context string) ([]call, error) {
	var calls []call
	known := starlark.StringDict{}
	for _, constant := range constants {
		known[constant] = starlark.String(constant)
	}
	for builtin, parameters := range signatures {
		known[builtin] = starlark.NewBuiltin(builtin, func(thread *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
			made, err := bind(builtin, parameters, args, kwargs)
			if err != nil {
				return nil, err
			}
			calls = append(calls, made)
			return result(thread, made, context)
		})
	}
	// What Tilt's dialect allows beyond Starlark's.
	options := &syntax.FileOptions{Set: true, While: true, TopLevelControl: true, GlobalReassign: true}
	_, err := starlark.ExecFileOptions(options, &starlark.Thread{Name: name}, name, source, known)
	return calls, err
}

func bind(builtin string, parameters []string, args starlark.Tuple, kwargs []starlark.Tuple) (call, error) {
	required := slices.Index(parameters, "/")
	names := slices.DeleteFunc(slices.Clone(parameters), func(name string) bool { return name == "/" })
	made := call{builtin, map[string]starlark.Value{}}
	if len(args) > len(names) {
		return made, fmt.Errorf("%s takes %d arguments, not %d", builtin, len(names), len(args))
	}
	for i, value := range args {
		made.arguments[names[i]] = value
	}
	for _, pair := range kwargs {
		name, _ := starlark.AsString(pair[0])
		if !slices.Contains(names, name) {
			return made, fmt.Errorf("%s has no parameter %s, but %s", builtin, name, strings.Join(names, ", "))
		}
		if _, given := made.arguments[name]; given {
			return made, fmt.Errorf("%s got %s twice", builtin, name)
		}
		made.arguments[name] = pair[1]
	}
	for _, name := range names[:required] {
		if _, given := made.arguments[name]; !given {
			return made, fmt.Errorf("%s needs %s", builtin, name)
		}
	}
	return made, nil
}

func result(thread *starlark.Thread, made call, context string) (starlark.Value, error) {
	switch made.builtin {
	case "fail":
		return nil, fmt.Errorf("%s", made.text("msg"))
	case "k8s_context":
		return starlark.String(context), nil
	case "encode_yaml": // JSON is YAML
		encode := json.Module.Members["encode"]
		text, err := starlark.Call(thread, encode, starlark.Tuple{made.arguments["obj"]}, nil)
		if err != nil {
			return nil, err
		}
		return recorded{text, made}, nil
	case "helm", "kustomize", "port_forward":
		return recorded{starlark.String(made.builtin), made}, nil
	default:
		return starlark.None, nil
	}
}
