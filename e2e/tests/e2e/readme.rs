//! The README's commands, taken from the README.

use std::{env, fs, process::Stdio, time::Duration};

use anyhow::{Context, bail, ensure};
use larder_e2e::{apply, cluster, environment, eventually, in_a_namespace};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
};

/// Building the sidecar may be part of the command.
const BUILD: Duration = Duration::from_secs(900);

/// The fenced blocks of the README that are marked so.
fn blocks(language: &str) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(environment::root()?.join("README.md"))?;
    let fence = format!("```{language}\n");
    let blocks = text.split(&fence).skip(1).filter_map(|rest| rest.split_once("```")).map(|(block, _)| block);
    Ok(blocks.map(str::to_owned).collect())
}

/// Returns the README's commands, one a line but where a line ends in a backslash.
fn commands() -> anyhow::Result<Vec<String>> {
    let lines = blocks("sh")?.concat().replace("\\\n", " ");
    let commands = lines.lines().map(|line| line.trim().trim_start_matches("$ ").to_owned());
    Ok(commands.filter(|line| !line.is_empty() && !line.starts_with('#')).collect())
}

async fn shell(command: &str) -> anyhow::Result<String> {
    let output = Command::new("sh")
        .args(["-c", command])
        .current_dir(environment::root()?)
        .kill_on_drop(true)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn the_sidecar_of_the_readme_caches_a_server_without_a_cluster() -> anyhow::Result<()> {
    let commands = commands()?;
    let run =
        commands.iter().find(|command| command.contains("-p larder-sidecar")).context("no sidecar to run")?;
    let curl =
        commands.iter().find(|command| command.starts_with("curl ")).context("nothing asks the sidecar")?;
    let address = |flag: &str| -> anyhow::Result<&str> {
        let (_, rest) = run.split_once(flag).with_context(|| format!("no {flag} in {run}"))?;
        rest.split_whitespace().next().context("no address")
    };
    let listen = address("--listen ")?;
    let upstream = address("--upstream http://")?;
    ensure!(curl.contains(listen), "{curl} does not ask {listen}");

    let server = TcpListener::bind(upstream)
        .await
        .with_context(|| format!("the README's port {upstream} is taken"))?;
    tokio::spawn(serve(server));
    // cargo becomes the program that it runs, which so ends with the test.
    let mut command = Command::new("sh");
    // What cargo tells the tests of their package would have dependencies that look at it built anew, here and after it.
    for (name, _) in
        env::vars().filter(|(name, _)| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
    {
        command.env_remove(name);
    }
    let mut sidecar = command
        .args(["-c", &format!("exec {run}")])
        .current_dir(environment::root()?)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    eventually(&format!("{run} listens"), BUILD, async || {
        if let Some(status) = sidecar.try_wait()? {
            bail!("it has ended: {status}");
        }
        Ok(TcpStream::connect(listen).await.map(drop)?)
    })
    .await?;
    let first = shell(curl).await?.to_lowercase();
    ensure!(first.contains("cache-status: larder; fwd=uri-miss"), "not a miss: {first}");
    let second = shell(curl).await?.to_lowercase();
    ensure!(second.contains("cache-status: larder; hit"), "not a hit: {second}");
    sidecar.kill().await?;
    Ok(())
}

/// Any HTTP server.
async fn serve(listener: TcpListener) -> anyhow::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut request = [0; 4096];
            while stream.read(&mut request).await? > 0 {
                stream
                    .write_all(
                        b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 6\r\n\r\nhello\n",
                    )
                    .await?;
            }
            anyhow::Ok(())
        });
    }
}

#[tokio::test]
async fn the_commands_of_the_readme_exist() -> anyhow::Result<()> {
    in_a_namespace(async |_| {
        let help = shell("./dev help").await?;
        for command in commands()? {
            let words: Vec<_> = command.split_whitespace().collect();
            match words[..] {
                ["./dev", name, ..] => {
                    ensure!(help.contains(&format!("./dev {name}")), "./dev help does not list {command}");
                }
                ["helm", "install" | "upgrade", ..] => {
                    let rendered = command.replacen("helm install", "template", 1).replacen(
                        "helm upgrade --install",
                        "template",
                        1,
                    );
                    let arguments: Vec<_> = rendered.split_whitespace().collect();
                    let chart = cluster::tool("LARDER_HELM", &arguments).await?;
                    ensure!(chart.contains("kind: Deployment"), "{command} installs nothing");
                }
                ["kubectl", "apply", ..] => {
                    let arguments: Vec<_> = words[1..].iter().copied().chain(["--dry-run=server"]).collect();
                    cluster::tool("LARDER_KUBECTL", &arguments).await?;
                }
                ["kubectl", "get" | "describe" | "explain", ..] => {
                    cluster::tool("LARDER_KUBECTL", &words[1..]).await?;
                }
                // By the test of upgrades, which has the cluster to itself.
                ["helm", "test", "larder", ..] => {}
                // By the test above.
                ["curl", ..] | ["cargo", "run", ..] if command.contains("127.0.0.1") => {}
                _ => bail!("the README has a command that no test knows: {command}"),
            }
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_policy_of_the_readme_is_accepted() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let mut policies = 0;
        for mut object in apply::documents(&blocks("yaml")?.join("\n---\n"))? {
            object["metadata"]["namespace"] = serde_json::json!(sandbox.name);
            apply::accepts(&sandbox.client, &sandbox.name, &object).await?;
            policies += 1;
        }
        ensure!(policies > 0, "the README shows no policy");
        Ok(())
    })
    .await
}
