//! Applications as people run them, on Express, nginx and Go's net/http, each a process of its own
//! (`sidecar/tests/applications`).

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tokio::net::TcpStream;

use super::{Folder, environment, free_port, until};

/// An application on a widely used server. All three serve:
///
/// - `/account`: `account of <Cookie>`, a page that must never be served to somebody else.
/// - every path that nothing else has: `page <method> <target>`.
/// - in each response `x-app`, and the request target and the peer address as the server saw them in `x-target` and `x-peer`.
///
/// Express and Go also serve `/api/users/{id}`, as `{"id": …, "version": …}` with a version that each write raises, and
/// `/whoami`; nginx serves `/static/` and `/local-only`, which only callers from 127.0.0.1 may see.
#[derive(Debug)]
pub(crate) struct Application {
    pub(crate) address: SocketAddr,
    child: Child,
    _folder: Folder,
}

impl Application {
    /// Starts an application on Express.
    pub(crate) async fn express() -> Self {
        Self::start(|port, _| {
            let mut command = Command::new(environment("LARDER_TEST_NODE"));
            command.arg(sources().join("express/app.cjs"));
            command.arg(port.to_string()).arg(environment("LARDER_TEST_EXPRESS"));
            command
        })
        .await
    }

    /// Starts an application on Go's net/http.
    pub(crate) async fn go() -> Self {
        Self::start(|port, _| {
            let mut command = Command::new(environment("LARDER_TEST_GO_APPLICATION"));
            command.arg(port.to_string());
            command
        })
        .await
    }

    /// Starts an application on nginx, which listens on every address of the machine.
    pub(crate) async fn nginx() -> Self {
        Self::start(|port, folder| {
            let template = fs::read_to_string(sources().join("nginx/nginx.conf")).unwrap();
            let path = folder.join("");
            let filled = template
                .replace("@FOLDER@", path.to_str().unwrap().trim_end_matches('/'))
                .replace("@PORT@", &port.to_string());
            fs::write(folder.join("nginx.conf"), filled).unwrap();
            let mut command = Command::new(environment("LARDER_TEST_NGINX"));
            command.arg("-p").arg(path).arg("-c").arg(folder.join("nginx.conf"));
            command.arg("-e").arg(folder.join("error.log"));
            command
        })
        .await
    }

    async fn start(command: impl FnOnce(u16, &Folder) -> Command) -> Self {
        let (folder, port) = (Folder::new(), free_port());
        let child = command(port, &folder).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let application = Self { address, child, _folder: folder };
        until("the application listens", async || TcpStream::connect(address).await.ok()).await;
        application
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/applications")
}
