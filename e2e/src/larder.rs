//! The program `larder`, run as a person does.

use std::{env, fs, path::PathBuf, process::Stdio};

use anyhow::{Context, ensure};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::{Sandbox, cluster, environment};

/// The program, with the rights of a user.
pub struct Larder<'a> {
    sandbox: &'a Sandbox,
    kubeconfig: Option<PathBuf>,
}

/// Result of a run.
#[derive(Debug)]
pub struct Run {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub printed: String,
    /// Standard error.
    pub said: String,
}

impl<'a> Larder<'a> {
    /// The program with the rights of the tests.
    pub fn of(sandbox: &'a Sandbox) -> Self {
        Self { sandbox, kubeconfig: None }
    }

    /// The program with the rights of a new service account, which has none.
    ///
    /// # Errors
    /// If the account or its kubeconfig can't be made.
    pub async fn without_rights(sandbox: &'a Sandbox) -> anyhow::Result<Self> {
        let kubectl = async |arguments: &[&str]| cluster::tool("LARDER_KUBECTL", arguments).await;
        kubectl(&["create", "serviceaccount", "reader", "-n", &sandbox.name]).await?;
        let token = kubectl(&["create", "token", "reader", "-n", &sandbox.name]).await?;
        let config = kubectl(&["config", "view", "--raw", "--minify", "-o", "json"]).await?;
        let mut config: Value = serde_json::from_str(&config)?;
        config["users"][0]["user"] = json!({"token": token.trim()});
        let file = env::temp_dir().join(format!("{}.kubeconfig", sandbox.name));
        fs::write(&file, config.to_string())?;
        Ok(Self { sandbox, kubeconfig: Some(file) })
    }

    fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(environment::variable("LARDER_CLI")?);
        command.args(["--namespace", &self.sandbox.name]).args(arguments).kill_on_drop(true);
        if let Some(file) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(file);
        }
        Ok(command)
    }

    /// Starts a command that goes on, and returns the lines that it prints. It ends when it is dropped.
    ///
    /// # Errors
    /// If the program can't be run.
    pub fn start(&self, arguments: &[&str]) -> anyhow::Result<(Child, Lines<BufReader<ChildStdout>>)> {
        let mut child = self.command(arguments)?.stdout(Stdio::piped()).spawn()?;
        let printed = child.stdout.take().context("standard output is not piped")?;
        Ok((child, BufReader::new(printed).lines()))
    }

    /// Runs a command in the namespace.
    ///
    /// # Errors
    /// If the program can't be run.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<Run> {
        let output = self.command(arguments)?.output().await?;
        Ok(Run {
            code: output.status.code().context("ended by a signal")?,
            printed: String::from_utf8_lossy(&output.stdout).into_owned(),
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a command and reads the JSON that it prints.
    ///
    /// # Errors
    /// If it exits with another code, or prints something else.
    pub async fn read<T: DeserializeOwned>(&self, code: i32, arguments: &[&str]) -> anyhow::Result<T> {
        let run = self.run(&[arguments, &["-o", "json"]].concat()).await?;
        ensure!(run.code == code, "{arguments:?}: {run:?}");
        serde_json::from_str(&run.printed).with_context(|| format!("{arguments:?}: {run:?}"))
    }
}

impl Drop for Larder<'_> {
    fn drop(&mut self) {
        if let Some(file) = &self.kubeconfig {
            let _ = fs::remove_file(file);
        }
    }
}
