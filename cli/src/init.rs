//! `larder policy init`.

mod draft;
pub(crate) mod labels;
mod questions;
mod template;
mod workload;

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{self, ErrorKind, IsTerminal, Write},
    path::Path,
};

use larder_lint::{Checker, Diagnostic, Environment};

pub(crate) use self::{draft::SecretKey, template::Template, workload::WorkloadName};
use self::{
    draft::{Draft, Routes},
    questions::Questions,
};
use crate::{
    args,
    cluster::Cluster,
    error::{Error, Result},
    outcome::Outcome,
    output::{self, Output},
    right::shell_word,
};

/// File that stands for standard output.
const STANDARD_OUTPUT: &str = "-";
/// Name of a port where nothing tells another.
const USUAL_PORT: &str = "http";

/// Writes a policy to standard output or into a file.
pub(crate) async fn run(args: args::Init, connection: &args::Connection, output: &Output) -> Result<Outcome> {
    if !output.is_for_people() {
        return Err(Error::Usage("policies are written in YAML with comments: leave -o out".to_owned()));
    }
    let (file, force) = (args.file.clone().filter(|file| file != Path::new(STANDARD_OUTPUT)), args.force);
    if let Some(file) = file.as_ref().filter(|file| !force && file.exists()) {
        return Err(is_there(file));
    }
    let is_asked = io::stdin().is_terminal() && io::stdout().is_terminal();
    let known = Known::of(args, connection).await?;
    let draft = match is_asked {
        true => known.completed(&mut Questions::new(io::stdin().lock(), io::stderr()))?,
        false => known.complete()?,
    };
    let text = checked(draft.text())?;
    match &file {
        None => output::print(&text)?,
        Some(file) => {
            write(file, &text, force)?;
            let word = shell_word(&file.to_string_lossy());
            eprintln!("wrote {}; `kubectl apply -f {word}` puts it in force", file.display());
        }
    }
    Ok(Outcome::Good)
}

/// Parts of a policy that options and the workload tell.
#[derive(Clone, Debug, Default)]
struct Known {
    name: Option<String>,
    namespace: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    port: Option<String>,
    routes: Option<Routes>,
    redis: Option<SecretKey>,
}

impl Known {
    async fn of(args: args::Init, connection: &args::Connection) -> Result<Self> {
        let args::Init { name, selector, workload, port, template, paths, ttl, grace, redis_secret, .. } =
            args;
        let routes = match template {
            Some(template) => Some(Routes::Template(template)),
            None => (!paths.is_empty()).then_some(Routes::Paths { paths, ttl, grace }),
        };
        let namespace = connection.namespace.clone().filter(|namespace| !namespace.is_empty());
        let mut known = Self { name, namespace, labels: selector, port, routes, redis: redis_secret };
        if let Some(workload) = workload {
            let cluster = Cluster::connect(connection).await?;
            let found = workload::find(&cluster, &workload).await?;
            known.name.get_or_insert(workload.name);
            known.namespace.get_or_insert(cluster.namespace);
            known.labels = Some(found.labels);
            known.port = known.port.or(found.port);
        }
        Ok(known)
    }

    /// Returns the draft.
    ///
    /// # Errors
    /// If something is missing.
    fn complete(self) -> Result<Draft> {
        let missing = [
            (self.labels.is_none(), "--workload or --selector"),
            (self.name.is_none(), "NAME"),
            (self.port.is_none(), "--port"),
            (self.routes.is_none(), "--template or --path"),
        ];
        let missing: Vec<_> =
            missing.iter().filter(|(is_missing, _)| *is_missing).map(|(_, option)| *option).collect();
        let Self {
            name: Some(name),
            namespace,
            labels: Some(labels),
            port: Some(port),
            routes: Some(routes),
            redis,
        } = self
        else {
            return Err(Error::Usage(format!(
                "give {}: questions are asked only on a terminal",
                missing.join(", ")
            )));
        };
        Ok(Draft { name, namespace, labels, port, routes, redis })
    }

    /// Returns the draft, after questions about what is missing.
    fn completed(mut self, questions: &mut Questions<impl io::BufRead, impl Write>) -> Result<Draft> {
        let is_incomplete = [&self.name, &self.port].into_iter().any(Option::is_none)
            || self.labels.is_none()
            || self.routes.is_none();
        let labels = match self.labels.take() {
            Some(labels) => labels,
            None => questions.ask("Labels of the pods, such as app=shop", None, labels::read)?,
        };
        if self.name.is_none() {
            let usual = labels.values().next().map(String::as_str);
            let read = |name: &str| fits(name, |name| Draft { name, ..Draft::example() });
            self.name = Some(questions.ask("Name of the policy", usual, read)?);
        }
        if self.port.is_none() {
            let question = "Port of the container, by name or number";
            let read = |port: &str| fits(port, |port| Draft { port, ..Draft::example() });
            self.port = Some(questions.ask(question, Some(USUAL_PORT), read)?);
        }
        if self.routes.is_none() {
            let names: Vec<_> = Template::ALL.map(Template::as_str).to_vec();
            let question =
                format!("Kind of application ({}), or a path such as /api/{{*path}}", names.join(", "));
            self.routes = Some(match questions.ask(&question, Some("/{*path}"), kind)? {
                Kind::Template(template) => Routes::Template(template),
                Kind::Path(path) => {
                    let question =
                        "Time for which responses are fresh, such as 60s (none: their Cache-Control decides)";
                    let routes = |ttl, grace| Routes::Paths { paths: vec![path.clone()], ttl, grace };
                    let read = |ttl: &str| {
                        optional(ttl, |ttl| Draft { routes: routes(Some(ttl), None), ..Draft::example() })
                    };
                    let ttl = questions.ask(question, Some(""), read)?;
                    let question = "Time for which stale ones are served while the application is down, such as 10m (none: not at all)";
                    let read = |grace: &str| {
                        optional(grace, |grace| Draft {
                            routes: routes(ttl.clone(), Some(grace)),
                            ..Draft::example()
                        })
                    };
                    let grace = questions.ask(question, Some(""), read)?;
                    routes(ttl, grace)
                }
            });
        }
        // Whoever gives every option that is needed, has said all.
        if is_incomplete && self.redis.is_none() {
            let question = "Secret with the URL of a Redis that the pods share, as NAME/KEY (none: each pod has its own cache)";
            self.redis = questions.ask(question, Some(""), redis)?;
        }
        self.labels = Some(labels);
        self.complete()
    }
}

/// Answer to the question about routes.
enum Kind {
    Template(Template),
    Path(String),
}

fn kind(answer: &str) -> std::result::Result<Kind, String> {
    if answer.starts_with('/') {
        let routes = |path| Routes::Paths { paths: vec![path], ttl: None, grace: None };
        return fits(answer, |path| Draft { routes: routes(path), ..Draft::example() }).map(Kind::Path);
    }
    let template = Template::ALL.into_iter().find(|template| template.as_str() == answer);
    template
        .map(Kind::Template)
        .ok_or_else(|| "write one of these kinds, or a path that begins with /".to_owned())
}

/// Returns an answer if the linter finds nothing in an example that has it.
fn fits(answer: &str, example: impl FnOnce(String) -> Draft) -> std::result::Result<String, String> {
    if answer.is_empty() {
        return Err("an answer is needed".to_owned());
    }
    match checked(example(answer.to_owned()).text()) {
        Ok(_) => Ok(answer.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Returns an answer that fits, or none if it is empty.
fn optional(
    answer: &str,
    example: impl FnOnce(String) -> Draft,
) -> std::result::Result<Option<String>, String> {
    Some(answer).filter(|answer| !answer.is_empty()).map(|answer| fits(answer, example)).transpose()
}

fn redis(answer: &str) -> std::result::Result<Option<SecretKey>, String> {
    if answer.is_empty() {
        return Ok(None);
    }
    let secret: SecretKey = answer.parse()?;
    let example = Draft { redis: Some(secret.clone()), ..Draft::example() };
    checked(example.text()).map_err(|error| error.to_string())?;
    Ok(Some(secret))
}

/// Returns a policy that the linter finds nothing in.
fn checked(text: String) -> Result<String> {
    let report = Checker::new(Environment::Cluster).check(&text);
    let findings = report.diagnostics.iter().chain(&report.warnings);
    let said: Vec<_> =
        findings.map(|Diagnostic { path, message, .. }| format!("{path}: {message}")).collect();
    if said.is_empty() { Ok(text) } else { Err(Error::Usage(said.join("\n"))) }
}

fn is_there(file: &Path) -> Error {
    Error::Usage(format!("{} is there already: choose another --file, or give --force", file.display()))
}

fn write(file: &Path, text: &str, force: bool) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true);
    match force {
        true => options.create(true).truncate(true),
        false => options.create_new(true),
    };
    let written = options.open(file).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => is_there(file),
        _ => Error::Unwritable { file: file.display().to_string(), error },
    })
}

#[cfg(test)]
mod tests;
