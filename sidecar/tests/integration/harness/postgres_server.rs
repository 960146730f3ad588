//! A Postgres server of a test's own.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio_postgres::{Client, NoTls};
use tokio_util::task::AbortOnDropHandle;

use super::{authority::Certified, environment, free_port, unique, until};

/// A Postgres server of a test's own, with passwords and optional TLS.
pub(crate) struct PostgresServer {
    pub(crate) port: u16,
    folder: PathBuf,
    child: Child,
}

impl PostgresServer {
    /// Password of the user `larder`.
    pub(crate) const PASSWORD: &str = "open-sesame";

    /// Starts a server with this certificate.
    pub(crate) async fn start(certified: &Certified) -> Self {
        // The server's user may not enter a home folder of root's.
        let folder = Path::new("/tmp").join(unique("larder-postgres"));
        fs::create_dir(&folder).unwrap();
        for (name, text) in [
            ("password", Self::PASSWORD),
            ("server.crt", &certified.certificate),
            ("server.key", &certified.key),
        ] {
            fs::write(folder.join(name), text).unwrap();
            fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        if geteuid().is_root() {
            assert!(
                Command::new("chown").arg("-R").arg("postgres:").arg(&folder).status().unwrap().success()
            );
        }
        let port = free_port();
        let data = folder.join("data");
        let made = program("initdb", &folder)
            .args([
                "--username=larder",
                "--auth-host=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ])
            .arg(format!("--pwfile={}", folder.join("password").display()))
            .arg(&data)
            .status();
        assert!(made.unwrap().success(), "initdb");
        let setting = |name: &str, file: &str| format!("{name}={}", folder.join(file).display());
        let child = program("postgres", &folder)
            .arg("-D")
            .arg(&data)
            .args([
                "-p",
                &port.to_string(),
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "fsync=off",
                "-c",
                "ssl=on",
                "-c",
                "wal_level=logical",
            ])
            .args([
                "-c",
                &setting("ssl_cert_file", "server.crt"),
                "-c",
                &setting("ssl_key_file", "server.key"),
            ])
            .args(["-c", &setting("unix_socket_directories", "")])
            .spawn()
            .unwrap();
        let server = Self { port, folder, child };
        until("postgres accepts connections", async || server.try_connecting().await.map(drop)).await;
        server
    }

    /// Returns the URL for a user.
    pub(crate) fn url(&self, user: &str, password: &str, mode: &str) -> String {
        format!("postgres://{user}:{password}@127.0.0.1:{}/postgres?sslmode={mode}", self.port)
    }

    /// Returns the number that a query selects.
    pub(crate) async fn number(&self, query: &str) -> i64 {
        let (client, _connection) = self.try_connecting().await.unwrap();
        client.query_one(query, &[]).await.unwrap().get(0)
    }

    /// Runs statements.
    pub(crate) async fn run(&self, statements: &str) {
        let (client, _connection) = self.try_connecting().await.unwrap();
        client.batch_execute(statements).await.unwrap();
    }

    async fn try_connecting(&self) -> Option<(Client, AbortOnDropHandle<()>)> {
        let url = self.url("larder", Self::PASSWORD, "disable");
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.ok()?;
        Some((client, AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) }))))
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // SIGQUIT ends it at once, and its children with it.
        let _ = kill_process(Pid::from_child(&self.child), Signal::QUIT);
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Returns a command of Postgres, which refuses to run as root.
fn program(name: &str, folder: &Path) -> Command {
    let path = Path::new(&environment("LARDER_TEST_POSTGRES_PROGRAMS")).join(name);
    let mut command = if geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(path);
        command
    } else {
        Command::new(path)
    };
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
