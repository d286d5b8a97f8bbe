// Reads the files of deploy/ with the libraries that Docker's and Prometheus' own tools are made of, and prints what they mean as JSON.
//
//	checker dockerfile FILE          warnings of BuildKit's linter, and every stage with its instructions
//	checker compose FILE             the project as Compose would run it: interpolated, profiles applied, verified
//	checker rules FILE               how many groups a Prometheus rule file has, every expression parsed
//	checker monitoring FILE          an object of the Prometheus operator, decoded without unknown fields
//
// Exit code 1, with the library's words on stderr, for a file that it refuses.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"sigs.k8s.io/yaml"
)

type instruction struct {
	Name  string `json:"name"`
	Value any    `json:"value"`
}

type stage struct {
	Name         string        `json:"name"`
	Base         string        `json:"base"`
	Instructions []instruction `json:"instructions"`
}

type dockerfile struct {
	Warnings  []string          `json:"warnings"`
	Arguments map[string]string `json:"arguments"`
	Stages    []stage           `json:"stages"`
}

func readDockerfile(path string) (any, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	parsed, err := parser.Parse(file)
	if err != nil {
		return nil, err
	}
	found := dockerfile{Warnings: []string{}, Arguments: map[string]string{}}
	for _, warning := range parsed.Warnings {
		found.Warnings = append(found.Warnings, warning.Short)
	}
	lint := linter.New(&linter.Config{
		Warn: func(rule, description, _, message string, _ []parser.Range) {
			found.Warnings = append(found.Warnings, fmt.Sprintf("%s: %s: %s", rule, description, message))
		},
	})
	stages, arguments, err := instructions.Parse(parsed.AST, lint)
	if err != nil {
		return nil, err
	}
	for _, argument := range arguments {
		for _, pair := range argument.Args {
			found.Arguments[pair.Key] = pair.ValueString()
		}
	}
	for _, each := range stages {
		read := stage{Name: each.Name, Base: each.BaseName}
		for _, command := range each.Commands {
			read.Instructions = append(read.Instructions, instruction{Name: command.Name(), Value: command})
		}
		found.Stages = append(found.Stages, read)
	}
	return found, nil
}

func readCompose(path string) (any, error) {
	options, err := cli.NewProjectOptions([]string{path}, cli.WithOsEnv, cli.WithDefaultProfiles())
	if err != nil {
		return nil, err
	}
	return options.LoadProject(context.Background())
}

func readRules(path string) (any, error) {
	groups, errs := rulefmt.ParseFile(path, false, model.UTF8Validation)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return len(groups.Groups), nil
}

func readMonitoring(path string) (any, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var kind struct {
		Kind string `json:"kind"`
	}
	if err := yaml.Unmarshal(text, &kind); err != nil {
		return nil, err
	}
	var object any
	switch kind.Kind {
	case "PodMonitor":
		object = &monitoring.PodMonitor{}
	case "PrometheusRule":
		object = &monitoring.PrometheusRule{}
	default:
		return nil, fmt.Errorf("unknown kind %q", kind.Kind)
	}
	return object, yaml.UnmarshalStrict(text, object)
}

var verbs = map[string]func(string) (any, error){
	"dockerfile": readDockerfile,
	"compose":    readCompose,
	"rules":      readRules,
	"monitoring": readMonitoring,
}

func main() {
	if len(os.Args) != 3 || verbs[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "checker dockerfile|compose|rules|monitoring FILE")
		os.Exit(2)
	}
	found, err := verbs[os.Args[1]](os.Args[2])
	if err == nil {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(found)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
