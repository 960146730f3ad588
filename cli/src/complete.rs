//! Completions for `kubectl larder`: kubectl runs the program as `kubectl_complete-larder`, with the words of the line so far.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

use clap::{Arg, Command, CommandFactory, ValueHint};

use crate::args::Args;

/// Name under which kubectl finds the program for completions (kubectl 1.26 and later).
const PROGRAM: &str = "kubectl_complete-larder";
/// Directive of cobra's completions: the shell completes files.
const FILES: &str = ":0";
/// Directive of cobra's completions: the shell completes nothing else.
const NOTHING_ELSE: &str = ":4";

/// Returns true if kubectl asks for completions.
pub(crate) fn is_asked(program: Option<&OsString>) -> bool {
    program.and_then(|program| Path::new(program).file_name()) == Some(OsStr::new(PROGRAM))
}

/// Returns the candidates for the last word, each on a line, and a directive to the shell.
pub(crate) fn candidates(words: &[OsString]) -> String {
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let Some((last, before)) = words.split_last() else { return NOTHING_ELSE.to_owned() + "\n" };
    let mut root = Args::command();
    root.build();
    let mut command = &root;
    let mut option: Option<&Arg> = None;
    for word in before {
        if option.take().is_some() {
            continue;
        }
        match word.strip_prefix('-') {
            Some(name) if !name.contains('=') => option = option_of(command, name),
            Some(_) => {}
            None => command = command.find_subcommand(word.as_ref()).unwrap_or(command),
        }
    }
    let with_value = last.strip_prefix('-').and_then(|last| last.split_once('='));
    let (all, is_of_files) = match (option, with_value) {
        (Some(option), _) => (values(option), takes_files(option)),
        (None, Some((name, _))) => (vec![], option_of(command, name).is_some_and(takes_files)),
        (None, None) if last.starts_with('-') => (options(command), false),
        (None, None) => {
            let subcommands = command.get_subcommands().filter(|one| !one.is_hide_set());
            let positionals = command.get_positionals().flat_map(values);
            let all = subcommands.map(|one| one.get_name().to_owned()).chain(positionals).collect();
            (all, command.get_positionals().any(takes_files))
        }
    };
    let fitting: Vec<_> = all.into_iter().filter(|one| one.starts_with(last.as_ref())).collect();
    let directive = if fitting.is_empty() && is_of_files { FILES } else { NOTHING_ELSE };
    fitting.into_iter().chain([directive.to_owned()]).map(|line| line + "\n").collect()
}

/// Returns an option that takes a value, by its name without the first dash.
fn option_of<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let is_named = |arg: &&Arg| match name.strip_prefix('-') {
        Some(long) => arg.get_long() == Some(long),
        None => arg.get_short().is_some_and(|short| name == short.encode_utf8(&mut [0; 4])),
    };
    command.get_arguments().find(is_named).filter(|arg| arg.get_action().takes_values())
}

fn options(command: &Command) -> Vec<String> {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    shown.filter_map(|arg| Some(format!("--{}", arg.get_long()?))).collect()
}

fn takes_files(arg: &Arg) -> bool {
    matches!(arg.get_value_hint(), ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath)
}

fn values(arg: &Arg) -> Vec<String> {
    arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(words: &[&str]) -> Vec<String> {
        let words: Vec<_> = words.iter().map(OsString::from).collect();
        candidates(&words).lines().map(str::to_owned).collect()
    }

    #[test]
    fn kubectl_asks_by_the_programs_name() {
        assert!(is_asked(Some(&"/usr/local/bin/kubectl_complete-larder".into())));
        assert!(!is_asked(Some(&"/usr/local/bin/kubectl-larder".into())) && !is_asked(None));
    }

    #[test]
    fn commands_options_and_values_are_completed() {
        assert_eq!(completed(&["st"]), ["status", "stats", ":4"]);
        assert_eq!(completed(&["-n", "shop", "policy", ""]), ["init", "help", ":4"]);
        assert_eq!(completed(&["policy", "init", "--template", "g"]), ["graphql", "grpc-gateway", ":4"]);
        assert_eq!(completed(&["status", "-o", ""]), ["json", "yaml", ":4"]);
        assert_eq!(completed(&["completions", "z"]), ["zsh", ":4"]);
        let purge = completed(&["purge", "shop", "--"]);
        for option in ["--tag", "--everything", "--soft", "--namespace"] {
            assert!(purge.contains(&option.to_owned()), "no {option} in {purge:?}");
        }
    }

    #[test]
    fn files_are_left_to_the_shell() {
        for words in [&["lint", "po"][..], &["status", "--kubeconfig", ""], &["man", "--dir=a", "--dir", ""]]
        {
            assert_eq!(completed(words), [":0"], "{words:?}");
        }
        assert_eq!(completed(&["status", "--kubeconfig=a"]), [":0"]);
        assert_eq!(completed(&[]), [":4"]);
    }

    #[test]
    fn names_of_policies_and_namespaces_and_formats_are_no_files() {
        for words in
            [&["status", ""][..], &["status", "-n", ""], &["-o", "x"], &["--context=a"], &["purge", "--q"]]
        {
            assert_eq!(completed(words).last().unwrap(), ":4", "{words:?}");
        }
    }
}
