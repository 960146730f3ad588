//! Places from which an application takes the number of its port.

use larder_crds::PortFrom;
use serde_json::{Value, json};

use super::text;

/// Lists of a container's arguments.
const ARGUMENTS: [&str; 2] = ["command", "args"];
/// Maximum length of a value with a port.
const MAX_VALUE: usize = 128;

/// Replaces the number `from` by `to` where `container` takes its port from. With `adds`, an environment variable that the
/// container does not list is added. Returns true if one was.
///
/// # Errors
/// The reason that the number cannot be replaced. The container is then as it was.
pub(crate) fn replace(
    container: &mut Value,
    place: &PortFrom,
    from: u16,
    to: u16,
    adds: bool,
) -> Result<bool, String> {
    match (&place.env, &place.argument) {
        (Some(name), None) => replace_variable(container, name, from, to, adds),
        (None, Some(argument)) => replace_arguments(container, argument, from, to).map(|()| false),
        _ => Err("the target has no portFrom; write portFrom: {env: PORT}, with the variable's name".into()),
    }
}

/// Removes an environment variable that [`replace`] added, if it still has that number.
pub(crate) fn remove(container: &mut Value, place: &PortFrom, number: u16) {
    let Some(variables) = container.get_mut("env").and_then(Value::as_array_mut) else { return };
    let is_ours = |entry: &Value| {
        entry["name"].as_str() == place.env.as_deref() && entry["value"].as_str() == Some(&number.to_string())
    };
    variables.retain(|entry| !is_ours(entry));
    if variables.is_empty() {
        container.as_object_mut().expect("it has a member").remove("env");
    }
}

/// Returns the places from which `container` may take the number `port`, by their names: variables first, then arguments.
pub(super) fn places(container: &Value, port: u16) -> Vec<PortFrom> {
    let has = |value: &Value| with_port(text(value), port, port).is_some();
    let variables = container["env"].as_array().into_iter().flatten().filter(|entry| has(&entry["value"]));
    let mut variables: Vec<_> = variables.map(|entry| text(&entry["name"])).collect();
    variables.sort_by_key(|name| (*name != "PORT", !name.to_ascii_uppercase().contains("PORT")));
    variables.dedup();
    let variables = variables.into_iter().map(|name| PortFrom { env: Some(name.to_owned()), argument: None });
    let mut arguments = Vec::new();
    for list in ARGUMENTS {
        let items: Vec<_> = container[list].as_array().into_iter().flatten().map(text).collect();
        for (index, item) in items.iter().enumerate() {
            let joined = item.split_once('=').filter(|(_, value)| with_port(value, port, port).is_some());
            let follows = index
                .checked_sub(1)
                .map(|before| items[before])
                .filter(|argument| argument.starts_with('-') && !argument.contains('=') && has(&json!(item)));
            arguments.extend(joined.map(|(argument, _)| argument).or(follows));
        }
    }
    let is_argument = |argument: &&str| !argument.is_empty() && !argument.contains(char::is_whitespace);
    let arguments = arguments.into_iter().filter(is_argument);
    variables
        .chain(arguments.map(|argument| PortFrom { env: None, argument: Some(argument.to_owned()) }))
        .collect()
}

/// Returns a value with the number `to` in place of `from`, which is the whole value or what follows its last colon.
fn with_port(value: &str, from: u16, to: u16) -> Option<String> {
    let (before, number) = match value.rsplit_once(':') {
        Some((host, number)) => (&value[..=host.len()], number),
        None => ("", value),
    };
    (number == from.to_string()).then(|| format!("{before}{to}"))
}

/// Returns true if a value may be the number of a port that can be replaced, alone or after a colon.
pub(crate) fn ends_with_port(value: &str) -> bool {
    let number = value.rsplit_once(':').map_or(value, |(_, number)| number);
    let is_number = (4..=5).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    value.len() <= MAX_VALUE && is_number
}

fn replace_variable(
    container: &mut Value,
    name: &str,
    from: u16,
    to: u16,
    adds: bool,
) -> Result<bool, String> {
    let entries = container.get_mut("env").and_then(Value::as_array_mut);
    // Of two variables of a name, the last one counts.
    let entry = entries.and_then(|entries| entries.iter_mut().rfind(|entry| entry["name"] == name));
    let Some(entry) = entry else {
        if container["envFrom"].as_array().is_some_and(|sources| !sources.is_empty()) {
            return Err(format!(
                "the variable {name} is not in env and may come from envFrom, where its value is not known; write it \
                 into the container's env, as in {{name: {name}, value: \"{from}\"}}"
            ));
        }
        if !adds {
            return Err(format!("the container's env has no variable {name}"));
        }
        let variable = json!({ "name": name, "value": to.to_string() });
        match container.get_mut("env").and_then(Value::as_array_mut) {
            Some(entries) => entries.push(variable),
            None => container["env"] = json!([variable]),
        }
        return Ok(true);
    };
    if !entry["valueFrom"].is_null() {
        return Err(format!(
            "the variable {name} has valueFrom, and its value is not known; write the value into the container's env, as \
             in {{name: {name}, value: \"{from}\"}}"
        ));
    }
    let Some(value) = with_port(text(&entry["value"]), from, to) else {
        return Err(format!(
            "the variable {name} does not have the value {from}, which is the port's number; correct the variable, the \
             target's port or its portFrom"
        ));
    };
    entry["value"] = json!(value);
    Ok(false)
}

fn replace_arguments(container: &mut Value, argument: &str, from: u16, to: u16) -> Result<(), String> {
    let mut lists = ARGUMENTS.map(|list| container[list].as_array().cloned().unwrap_or_default());
    let mut found = false;
    for items in &mut lists {
        let mut index = 0;
        while index < items.len() {
            let item = text(&items[index]);
            let (index_of_value, value, prefix) = match item.split_once('=') {
                Some((name, value)) if name == argument => (index, value, format!("{argument}=")),
                _ if item == argument => {
                    (index + 1, items.get(index + 1).map(text).unwrap_or_default(), String::new())
                }
                _ => {
                    index += 1;
                    continue;
                }
            };
            let Some(value) = with_port(value, from, to) else {
                return Err(format!(
                    "{from}, which is the port's number, does not follow the argument {argument}; correct the argument, \
                     the target's port or its portFrom"
                ));
            };
            items[index_of_value] = json!(format!("{prefix}{value}"));
            found = true;
            index = index_of_value + 1;
        }
    }
    if !found {
        return Err(format!(
            "neither command nor args of the container has the argument {argument} by itself, as in \
             [\"{argument}\", \"{from}\"]; write it there, or set portFrom to a variable"
        ));
    }
    for (list, items) in ARGUMENTS.into_iter().zip(lists) {
        if !items.is_empty() {
            container[list] = json!(items);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> PortFrom {
        PortFrom { env: Some(name.into()), argument: None }
    }

    fn argument(name: &str) -> PortFrom {
        PortFrom { env: None, argument: Some(name.into()) }
    }

    fn replaced(container: &Value, place: &PortFrom) -> Result<Value, String> {
        let mut after = container.clone();
        let result = replace(&mut after, place, 8080, 24810, true);
        if result.is_err() {
            assert_eq!(after, *container, "it was changed in spite of {result:?}");
        }
        result.map(|_| after)
    }

    #[test]
    fn number_is_replaced_alone_and_after_a_colon() {
        for (value, expected) in [
            ("8080", Some("24810")),
            (":8080", Some(":24810")),
            ("0.0.0.0:8080", Some("0.0.0.0:24810")),
            ("[::]:8080", Some("[::]:24810")),
            ("http://+:8080", Some("http://+:24810")),
            ("18080", None),
            ("8080/tcp", None),
            ("$(PORT)", None),
            ("", None),
        ] {
            assert_eq!(with_port(value, 8080, 24810).as_deref(), expected, "{value}");
        }
    }

    #[test]
    fn variable_is_replaced_or_added() {
        let with = |env: Value| json!({"name": "app", "env": env});
        let before = with(json!([{"name": "A", "value": "8080"}, {"name": "PORT", "value": "8080"}]));
        let after = with(json!([{"name": "A", "value": "8080"}, {"name": "PORT", "value": "24810"}]));
        assert_eq!(replaced(&before, &env("PORT")), Ok(after));
        let twice = with(json!([{"name": "PORT", "value": "1"}, {"name": "PORT", "value": "8080"}]));
        assert_eq!(
            replaced(&twice, &env("PORT")).unwrap()["env"][1]["value"],
            "24810",
            "the last one counts"
        );
        let added = with(json!([{"name": "PORT", "value": "24810"}]));
        assert_eq!(replaced(&json!({"name": "app"}), &env("PORT")), Ok(added.clone()));
        let mut removed = added;
        remove(&mut removed, &env("PORT"), 24810);
        assert_eq!(removed, json!({"name": "app"}));
    }

    #[test]
    fn variable_of_unknown_value_is_refused_with_the_remedy() {
        let source = json!({"configMapKeyRef": {"name": "a", "key": "b"}});
        for (container, message) in [
            (json!({"env": [{"name": "PORT", "valueFrom": source}]}), "has valueFrom"),
            (json!({"env": [{"name": "PORT", "value": "9090"}]}), "does not have the value 8080"),
            (json!({"env": [{"name": "PORT"}]}), "does not have the value 8080"),
            (json!({"envFrom": [{"configMapRef": {"name": "a"}}]}), "may come from envFrom"),
        ] {
            let reason = replaced(&container, &env("PORT")).unwrap_err();
            assert!(reason.contains(message) && reason.contains("PORT"), "{reason}");
        }
    }

    #[test]
    fn argument_is_replaced_in_each_form() {
        for (list, name, before, after) in [
            ("args", "--port", json!(["serve", "--port=8080"]), json!(["serve", "--port=24810"])),
            ("args", "--port", json!(["--port", "8080", "x"]), json!(["--port", "24810", "x"])),
            ("command", "-p", json!(["app", "-p", "8080"]), json!(["app", "-p", "24810"])),
            (
                "command",
                "-b",
                json!(["gunicorn", "-b", "0.0.0.0:8080"]),
                json!(["gunicorn", "-b", "0.0.0.0:24810"]),
            ),
            ("args", "-Dserver.port", json!(["-Dserver.port=8080"]), json!(["-Dserver.port=24810"])),
            (
                "args",
                "--port",
                json!(["--port", "8080", "--port=8080"]),
                json!(["--port", "24810", "--port=24810"]),
            ),
        ] {
            assert_eq!(replaced(&json!({list: before}), &argument(name)), Ok(json!({list: after})));
        }
    }

    #[test]
    fn argument_that_cannot_be_replaced_is_refused_with_the_remedy() {
        for (args, message) in [
            (json!(["--port=9090"]), "8080, which is the port's number, does not follow the argument --port"),
            (json!(["--port"]), "does not follow"),
            (json!(["--port=8080", "--port=$(PORT)"]), "does not follow"),
            (json!(["--ports=8080"]), "has the argument --port by itself"),
            (json!(["sh", "-c", "app --port 8080"]), "has the argument --port by itself"),
            (Value::Null, "has the argument --port by itself"),
        ] {
            let reason = replaced(&json!({"args": args}), &argument("--port")).unwrap_err();
            assert!(reason.contains(message), "{reason}");
        }
    }

    #[test]
    fn places_that_have_the_number_are_found() {
        let container = json!({
            "command": ["app", "--verbose", "serve", "-l", ":8080"],
            "args": ["--metrics=9090", "--port=8080", "8080", "--x=1", "8080"],
            "env": [{"name": "UPSTREAM", "value": "a:8080"}, {"name": "HTTP_PORT", "value": "8080"},
                {"name": "PORT", "value": "8080"}, {"name": "B", "value": "9"}],
        });
        let expected = [env("PORT"), env("HTTP_PORT"), env("UPSTREAM"), argument("-l"), argument("--port")];
        assert_eq!(places(&container, 8080), expected);
        for place in places(&container, 8080) {
            assert!(replaced(&container, &place).is_ok(), "{place:?}");
        }
    }
}
