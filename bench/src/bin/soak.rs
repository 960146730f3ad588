//! `./dev bench soak`: memory of a sidecar under churn at full load.

use std::{
    env, fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use larder_bench::{
    answer,
    memory::resident,
    process::{Process, free_ports},
    serve,
    soak::{self, Soak},
};

const MIB: u64 = 1 << 20;

/// Asks a sidecar for responses of changing sizes as fast as it answers, and fails if its memory exceeds the limit of its container.
#[derive(Parser)]
struct Arguments {
    /// Duration in seconds.
    #[arg(long, default_value_t = 600)]
    seconds: u64,

    /// Number of connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,

    /// Size of L1 in MiB.
    #[arg(long, default_value_t = 64)]
    l1: u64,

    /// Limit of the sidecar's memory in MiB.
    #[arg(long, default_value_t = 128)]
    limit: u64,

    /// Eviction policy of L1.
    #[arg(long, default_value = "LRU")]
    eviction: String,

    /// The sidecar; the release build beside this program if it is not given.
    #[arg(long)]
    sidecar: Option<PathBuf>,
}

fn main() -> Result<()> {
    let Arguments { seconds, connections, l1, limit, eviction, sidecar } = Arguments::parse();
    let sidecar = match sidecar {
        Some(sidecar) => sidecar,
        None => env::current_exe()?.with_file_name("larder-sidecar"),
    };
    let ports = free_ports(3)?;
    let [origin, port, admin] = ports[..] else { unreachable!("three were asked for") };
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, origin));
    thread::spawn(move || serve::forever(listen, false, answer::at));
    let scratch = env::temp_dir().join(format!("larder-soak-{}", std::process::id()));
    fs::create_dir_all(&scratch)?;
    let policy = scratch.join("policy.yaml");
    fs::write(&policy, document(l1, &eviction))?;
    let command = [
        sidecar.display().to_string(),
        "--threads=1".into(),
        format!("--listen=127.0.0.1:{port}"),
        format!("--admin-listen=127.0.0.1:{admin}"),
        format!("--upstream=http://127.0.0.1:{origin}"),
        format!("--policy={}", policy.display()),
        format!("--memory-limit={limit}Mi"),
    ];
    let process = Process::start("0", &command, scratch.join("log"), port)?;
    let budget = soak::budget(&metrics(admin)?)?;
    say(&format!(
        "idle: {:.1} MiB resident, {:.1} of them anonymous; L1 {l1} MiB, budget {:.1} MiB, limit {limit} MiB",
        mib(resident(process.id(), "VmRSS")?),
        mib(resident(process.id(), "RssAnon")?),
        mib(budget),
    ))?;
    let soak = Soak { port, process: process.id(), connections, span: Duration::from_secs(seconds) };
    let mut shown = 0;
    let seen = soak.run(|elapsed, seen| {
        if elapsed.as_secs() / 10 == shown {
            return Ok(());
        }
        shown = elapsed.as_secs() / 10;
        say(&format!(
            "{:>4} s: {} responses, {} hits, {} cut off; at most {:.1} MiB resident, {:.1} anonymous",
            elapsed.as_secs(),
            seen.responses,
            seen.hits,
            seen.cut,
            mib(seen.resident),
            mib(seen.anonymous)
        ))
    })?;
    drop(process);
    fs::remove_dir_all(&scratch)?;
    say(&format!(
        "{} responses, {} of them hits, {} GiB, {} cut off: at most {:.1} MiB resident, {:.1} anonymous",
        seen.responses,
        seen.hits,
        seen.bytes >> 30,
        seen.cut,
        mib(seen.resident),
        mib(seen.anonymous)
    ))?;
    ensure!(seen.resident <= limit * MIB, "more than the limit of {limit} MiB");
    // Two fifths besides the budget are the allocator's (decision 24), which gives back what is freed a moment later.
    say(&format!("L1 and the budget are {:.1} MiB", mib(l1 * MIB + budget)))
}

fn document(l1: u64, eviction: &str) -> String {
    format!(
        r#"apiVersion: larder.dev/v1alpha1
kind: CachePolicy
metadata: {{name: soak, namespace: soak}}
spec:
  selector: {{matchLabels: {{app: soak}}}}
  targets: [{{port: http}}]
  l1: {{maxSize: {l1}Mi, maxObjectSize: 1Mi, eviction: {eviction}}}
  routes:
  - {{name: object, match: {{path: "/{{size}}"}}}}
"#
    )
}

fn metrics(admin: u16) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, admin))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("metrics")?;
    Ok(text)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}
