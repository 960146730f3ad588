//! Every CEL rule of the definition has a policy that breaks it, which is refused here too.

use std::collections::BTreeMap;

use kube_cel::{ErrorKind, Validator, compile_schema};
use serde_json::{Map, Value as Json, json};

use crate::{
    Checker, Diagnostic, Environment,
    fixtures::{self, Fixture, VALID},
    schema,
};

/// Calls `visit` for each schema in a schema, with its path.
pub(super) fn each(schema: &Json, path: &str, visit: &mut impl FnMut(&Map<String, Json>, &str)) {
    let Json::Object(words) = schema else { return };
    visit(words, path);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        each(property, &format!("{path}.{name}"), visit);
    }
    each(&schema["items"], &format!("{path}[]"), visit);
    each(&schema["additionalProperties"], &format!("{path}.*"), visit);
}

/// Returns the places of each rule, by its message.
fn rules() -> BTreeMap<String, Vec<String>> {
    let mut rules: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut schema = schema::definition();
    schema["properties"]["status"] = Json::Null;
    each(&schema, "", &mut |schema, path| {
        let listed = schema.get("x-kubernetes-validations").and_then(Json::as_array);
        for rule in listed.into_iter().flatten() {
            let message = rule["message"].as_str().unwrap().to_owned();
            rules.entry(message).or_default().push(path.trim_start_matches('.').to_owned());
        }
    });
    rules
}

#[test]
fn every_rule_has_a_fixture_and_refuses_it() {
    let checker = Checker::new(Environment::Cluster);
    assert_eq!(checker.check(VALID).diagnostics, []);
    let rules = rules();
    for (message, places) in &rules {
        let fixture = fixtures::all().find(|fixture| fixture.message == message);
        let Some(fixture) = fixture else { panic!("write a fixture for the rule {message:?} of {places:?}") };
        let diagnostics = checker.check(&fixture.policy()).diagnostics;
        let found: Vec<_> = diagnostics.iter().map(|Diagnostic { path, .. }| path.as_str()).collect();
        assert_eq!(found, [fixture.path], "{message}: {diagnostics:#?}");
        let general = fixture.path.replace("[0]", "[]");
        let stands = |place: &String| general.starts_with(place.trim_end_matches(".secretKeyRef"));
        assert!(places.iter().any(stands), "{message}: {places:?}");
    }
    for Fixture { message, .. } in fixtures::all() {
        assert!(rules.contains_key(message), "no rule has the message {message:?} any more");
    }
}

/// `refusing::the_api_server_and_the_check_agree_on_every_rule` asks an API server for its verdicts.
#[test]
fn values_at_the_border_of_a_rule_have_the_verdict_that_is_compared_with_an_api_server() {
    let checker = Checker::new(Environment::Cluster);
    for edge in fixtures::edges() {
        let diagnostics = checker.check(&edge.policy()).diagnostics;
        assert_eq!(diagnostics.is_empty(), edge.accepted_by_check, "{edge:?}: {diagnostics:?}");
    }
}

/// API servers have `type()`; a rule that needs it can be written without, as that of ports is.
#[test]
fn the_library_does_not_know_the_type_of_a_value() {
    let rules = json!({"x-kubernetes-validations": [{"rule": "type(self) == int", "message": "no"}]});
    let errors = Validator::new().validate(&rules, &json!(1), None).unwrap_err();
    assert_eq!(errors[0].kind, ErrorKind::UnsupportedReference);
}

#[test]
fn the_library_evaluates_every_rule_and_finds_the_broken_one() {
    let schema = schema::definition();
    let compiled = compile_schema(&schema);
    let evaluate = |text: &str| {
        let document: Json = serde_yaml::from_str(text).unwrap();
        match Validator::new().validate_compiled(&compiled, &document, None) {
            Ok(()) => vec![],
            Err(errors) => errors.into_iter().map(|error| (error.kind, error.message)).collect(),
        }
    };
    assert_eq!(evaluate(VALID), []);
    for fixture in fixtures::all() {
        let broken = evaluate(&fixture.policy());
        assert_eq!(
            broken,
            [(ErrorKind::ValidationFailure, fixture.message.to_owned())],
            "{}",
            fixture.policy()
        );
    }
}
