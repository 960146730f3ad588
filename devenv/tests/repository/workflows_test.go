package repository

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// A checker knows what the commands of workflows may name.
type checker struct {
	dev      []synopsis
	packages []string
}

func newChecker(t *testing.T) checker {
	t.Helper()
	var packages []string
	for _, manifest := range matching(t, "*/Cargo.toml", "*/*/Cargo.toml", "*/*/*/Cargo.toml") {
		_, rest, _ := strings.Cut(read(t, manifest), "[package]\nname = \"")
		name, _, _ := strings.Cut(rest, "\"")
		packages = append(packages, name)
	}
	return checker{dev: synopses(t), packages: packages}
}

func TestWorkflowsAreSafeBoundedAndRunWhatIsThere(t *testing.T) {
	known := newChecker(t)
	runs := map[string]bool{}
	for _, path := range matching(t, ".github/workflows/*") {
		workflow := parse(t, path)
		for _, problem := range known.workflow(workflow) {
			t.Errorf("%s: %s", path, problem)
		}
		for _, command := range commandsOf(workflow) {
			runs[strings.Join(command, " ")] = true
		}
	}
	for _, command := range []string{".ci/run", "./dev test style", "./dev test deny --advisories", "helm lint --strict charts/larder"} {
		if !runs[command] {
			t.Errorf("no workflow runs %s", command)
		}
	}
}

// workflow returns what is wrong with a workflow.
func (c checker) workflow(workflow *yaml.Node) (problems []string) {
	problem := func(format string, arguments ...any) { problems = append(problems, fmt.Sprintf(format, arguments...)) }
	for _, key := range unknown(workflow, "name", "on", "permissions", "concurrency", "env", "jobs") {
		problem("%s is no key of a workflow", key)
	}
	for _, key := range []string{"name", "on", "jobs"} {
		if field(workflow, key) == nil {
			problem("%s is missing", key)
		}
	}
	if field(field(workflow, "concurrency"), "group") == nil {
		problem("concurrency.group is missing: runs of commits that were replaced go on")
	}
	permissions := field(workflow, "permissions")
	if permissions == nil {
		problem("permissions is missing: the token may do what the repository's settings say")
	}
	problems = append(problems, tooMuch(permissions)...)
	jobs := field(workflow, "jobs")
	for _, name := range keys(jobs) {
		for _, each := range c.job(field(jobs, name)) {
			problem("%s: %s", name, each)
		}
	}
	return problems
}

func (c checker) job(job *yaml.Node) (problems []string) {
	for _, key := range unknown(job, "name", "needs", "if", "permissions", "strategy", "runs-on", "timeout-minutes", "env", "steps") {
		problems = append(problems, key+" is no key of a job that this test knows")
	}
	if minutes, err := strconv.Atoi(text(field(job, "timeout-minutes"))); err != nil || minutes < 1 || minutes > 120 {
		problems = append(problems, "timeout-minutes is not between 1 and 120")
	}
	runner := text(field(job, "runs-on"))
	if runner == "" || strings.HasSuffix(runner, "-latest") {
		problems = append(problems, "runs-on names no release of a runner")
	}
	problems = append(problems, tooMuch(field(job, "permissions"))...)
	steps := field(job, "steps")
	if steps == nil || len(steps.Content) == 0 {
		return append(problems, "it has no steps")
	}
	for i, step := range steps.Content {
		for _, each := range c.step(step) {
			problems = append(problems, fmt.Sprintf("step %d: %s", i+1, each))
		}
	}
	return problems
}

// tooMuch returns what is wrong with permissions: no workflow of ours writes anything.
func tooMuch(permissions *yaml.Node) (problems []string) {
	if permissions != nil && permissions.Kind != yaml.MappingNode {
		return []string{"permissions: list them one by one"}
	}
	for _, scope := range keys(permissions) {
		if level := text(field(permissions, scope)); level != "read" && level != "none" {
			problems = append(problems, fmt.Sprintf("permissions: %s: %s is more than any workflow needs", scope, level))
		}
	}
	return problems
}

var (
	pinned  = regexp.MustCompile(`^[\w.-]+/[\w./-]+@[0-9a-f]{40}$`)
	version = regexp.MustCompile(`^# v\d+\.\d+\.\d+$`)
)

func (c checker) step(step *yaml.Node) (problems []string) {
	problem := func(format string, arguments ...any) { problems = append(problems, fmt.Sprintf(format, arguments...)) }
	for _, key := range unknown(step, "name", "id", "if", "env", "uses", "with", "run") {
		problem("%s is no key of a step that this test knows", key)
	}
	uses, run := field(step, "uses"), field(step, "run")
	if (uses == nil) == (run == nil) {
		problem("it has not exactly one of uses and run")
	}
	if uses != nil {
		if !pinned.MatchString(text(uses)) || !version.MatchString(uses.LineComment) {
			problem("%s: pin it as NAME@COMMIT # vX.Y.Z", text(uses))
		}
		if strings.HasPrefix(text(uses), "actions/checkout@") && text(field(field(step, "with"), "persist-credentials")) != "false" {
			problem("checkout leaves its token to later steps: set persist-credentials: false")
		}
	}
	if strings.Contains(text(run), "${{") {
		problem("an expression becomes part of the shell's program: pass it in env")
	}
	for _, command := range split(text(run)) {
		if err := c.command(command); err != nil {
			problem("%v", err)
		}
	}
	return problems
}

// command returns an error if a command names something that does not exist.
func (c checker) command(words []string) error {
	program := words[0]
	switch {
	case program == "./dev":
		return checkDev(c.dev, words[1:])
	case strings.Contains(program, "/"):
		if !isExecutable(program) {
			return fmt.Errorf("%s is no program of this repository", program)
		}
	case program == "cargo":
		if len(words) < 2 || words[1] != "build" || !slices.Contains(words, "--locked") {
			return fmt.Errorf("%s: only `cargo build --locked` is a workflow's own; the rest is ./dev's", strings.Join(words, " "))
		}
		for i, word := range words {
			if word == "-p" && (i+1 == len(words) || !slices.Contains(c.packages, words[i+1])) {
				return fmt.Errorf("%s: the workspace has no such package", strings.Join(words[i:], " "))
			}
		}
	case program == "helm":
		if len(words) < 2 || !slices.Contains([]string{"lint", "package"}, words[1]) {
			return fmt.Errorf("%s: helm only lints and packages here", strings.Join(words, " "))
		}
		for _, word := range words {
			if strings.HasPrefix(word, "charts/") && !exists(word+"/Chart.yaml") {
				return fmt.Errorf("%s is no chart", word)
			}
		}
	case program == "sudo":
		if len(words) < 3 || words[1] != "apt-get" || !slices.Contains([]string{"update", "install"}, words[2]) {
			return fmt.Errorf("%s: as root, packages are installed and nothing else", strings.Join(words, " "))
		}
	default:
		return fmt.Errorf("%s is no command that this test can check: teach it, or make it a part of ./dev", program)
	}
	return nil
}

// split takes the text of a `run` apart into commands and their words.
func split(run string) (commands [][]string) {
	for line := range strings.Lines(strings.ReplaceAll(run, "\\\n", " ")) {
		for _, command := range regexp.MustCompile(`&&|\|\||[;|]`).Split(line, -1) {
			if words := strings.Fields(command); len(words) != 0 && !strings.HasPrefix(words[0], "#") {
				commands = append(commands, words)
			}
		}
	}
	return commands
}

// commandsOf returns every command of a workflow.
func commandsOf(workflow *yaml.Node) (commands [][]string) {
	jobs := field(workflow, "jobs")
	for _, name := range keys(jobs) {
		if steps := field(field(jobs, name), "steps"); steps != nil {
			for _, step := range steps.Content {
				commands = append(commands, split(text(field(step, "run")))...)
			}
		}
	}
	return commands
}

const goodWorkflow = `
name: x
on: {push: {}}
permissions: {contents: read}
concurrency: {group: x}
jobs:
  x:
    runs-on: ubuntu-24.04
    timeout-minutes: 10
    steps:
    - uses: actions/checkout@0123456789abcdef0123456789abcdef01234567 # v1.2.3
      with: {persist-credentials: false}
    - run: .ci/run && ./dev test unit
    - run: cargo build --locked -p larder-sidecar
`

func TestAMistakeInAWorkflowIsFound(t *testing.T) {
	known := newChecker(t)
	problemsOf := func(workflow string) []string {
		var document yaml.Node
		if err := yaml.Unmarshal([]byte(workflow), &document); err != nil {
			t.Fatal(err)
		}
		return known.workflow(document.Content[0])
	}
	if problems := problemsOf(goodWorkflow); len(problems) != 0 {
		t.Errorf("a good workflow has %s", problems)
	}
	for right, wrong := range map[string]string{
		"./dev test unit":                   "./dev test uint",
		"./dev test":                        "./dev tset",
		".ci/run":                           ".ci/rnu",
		"-p larder-sidecar":                 "-p larder-sidecars",
		"--locked":                          "",
		"{contents: read}":                  "{contents: write}",
		"permissions: {contents: read}":     "permissions: read-all",
		"permissions:":                      "premissions:",
		"timeout-minutes: 10":               "timeout-minutes: 0",
		"    timeout-minutes":               "    timeout",
		"{group: x}":                        "{}",
		"@0123456789abcdef0123456789abcdef": "@v4",
		" # v1.2.3":                         "",
		"persist-credentials: false":        "fetch-depth: 0",
		"ubuntu-24.04":                      "ubuntu-latest",
		"run: .ci/run":                      "run: echo ${{ github.head_ref }} | .ci/run",
		"run: cargo":                        "uses: cargo",
	} {
		broken := strings.Replace(goodWorkflow, right, wrong, 1)
		if broken == goodWorkflow {
			t.Fatalf("%s is not there", right)
		}
		if len(problemsOf(broken)) == 0 {
			t.Errorf("%q in place of %q passes", wrong, right)
		}
	}
}
