use larder_policy::PurgeName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
};

use super::{driver::Ended, *};
use crate::l2::commands::{Question, write_lookup};

const RECORD: Expected = Expected { version: None, record: true };

/// An open connection, and its other end.
fn open(patience: Duration) -> (Arc<ThreadConnection>, DuplexStream, JoinHandle<String>) {
    open_with(1 << 20, patience)
}

/// An open connection with room for so many bytes on the way, and its other end.
fn open_with(room: usize, patience: Duration) -> (Arc<ThreadConnection>, DuplexStream, JoinHandle<String>) {
    let (near, far) = duplex(room);
    let connection = Arc::new(ThreadConnection::new());
    connection.begin();
    let end = EndOnDrop(Arc::clone(&connection));
    let driver = Driver::new(Arc::clone(&connection), near, patience);
    let task = tokio::spawn(async move {
        let _end = end;
        driver.run().await.to_string()
    });
    (connection, far, task)
}

fn get(connection: &Arc<ThreadConnection>, key: &str) -> JoinHandle<RedisResult<String>> {
    let (connection, key) = (Arc::clone(connection), key.to_owned());
    tokio::spawn(async move {
        let reply = connection.ask(RECORD, later(), |out| command(out, [b"GET", key.as_bytes()])).await?;
        Ok(String::from_utf8_lossy(&reply.record.bytes).into_owned())
    })
}

/// A deadline that no test waits for.
fn later() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// Waits until so many replies are owed.
async fn until_owed(connection: &ThreadConnection, count: usize) {
    while connection.state.lock().owed.len() < count {
        tokio::task::yield_now().await;
    }
}

#[test]
fn command_states_the_length_of_each_word() {
    for length in [0, 9, 10, 99, 100, 12_345] {
        let (word, mut out) = ("x".repeat(length), Vec::new());
        command(&mut out, [b"GET", word.as_bytes()]);
        assert_eq!(String::from_utf8(out).unwrap(), format!("*2\r\n$3\r\nGET\r\n${length}\r\n{word}\r\n"));
    }
}

#[tokio::test]
async fn replies_come_in_order_past_requests_that_were_dropped() {
    let (connection, mut far, _task) = open(CONNECT_DEADLINE);
    let [a, b, c] = ["a", "b", "c"].map(|key| get(&connection, key));
    until_owed(&connection, 3).await;
    b.abort();
    assert!(b.await.unwrap_err().is_cancelled());
    let mut commands = [0; 256];
    // What was asked in one turn was written at once.
    let length = far.read(&mut commands).await.unwrap();
    let expected: String = ["a", "b", "c"].map(|key| format!("*2\r\n$3\r\nGET\r\n$1\r\n{key}\r\n")).concat();
    assert_eq!(commands[..length], *expected.as_bytes());
    far.write_all(b"$1\r\n1\r\n$1\r\n2\r").await.unwrap();
    assert_eq!(a.await.unwrap().unwrap(), "1");
    assert!(!c.is_finished());
    far.write_all(b"\n-ERR no\r\n").await.unwrap();
    let error = c.await.unwrap().unwrap_err();
    assert!(!error.is_io_error(), "{error}");
    let d = get(&connection, "d");
    until_owed(&connection, 1).await;
    far.write_all(b"$1\r\n4\r\n").await.unwrap();
    assert_eq!(d.await.unwrap().unwrap(), "4", "an error ends nothing");
}

#[tokio::test]
async fn end_in_the_middle_of_a_reply_is_an_error_for_everybody() {
    let (connection, mut far, task) = open(CONNECT_DEADLINE);
    let waiting = ["a", "b", "c"].map(|key| get(&connection, key));
    until_owed(&connection, 3).await;
    far.write_all(b"$1\r\n1\r\n$5\r\nab").await.unwrap();
    drop(far);
    let [first, others @ ..] = waiting;
    assert_eq!(first.await.unwrap().unwrap(), "1");
    for other in others {
        assert!(other.await.unwrap().unwrap_err().is_io_error());
    }
    assert_eq!(task.await.unwrap(), Ended::Closed.to_string());
    assert!(get(&connection, "d").await.unwrap().unwrap_err().is_io_error(), "nobody begins to wait");
}

#[tokio::test]
async fn end_of_the_task_is_an_error_for_everybody() {
    let (connection, _far, task) = open(CONNECT_DEADLINE);
    let waiting = get(&connection, "a");
    until_owed(&connection, 1).await;
    task.abort();
    assert!(waiting.await.unwrap().unwrap_err().is_io_error());
}

#[tokio::test]
async fn bytes_that_nobody_asked_for_end_the_connection() {
    for (asked, said) in
        [(0, &b"$1\r\n1\r\n"[..]), (1, b"+OK\r\n"), (1, b"$1\r\n1\r\n$1\r\n2\r\n"), (2, b"*0\r\n")]
    {
        let (connection, mut far, task) = open(CONNECT_DEADLINE);
        let waiting: Vec<_> = (0..asked).map(|_| get(&connection, "a")).collect();
        until_owed(&connection, asked).await;
        far.write_all(said).await.unwrap();
        assert_eq!(task.await.unwrap(), Ended::Malformed.to_string());
        for waiting in waiting {
            // The first may have its reply.
            let _ = waiting.await.unwrap();
        }
        assert_eq!(connection.state.lock().owed.len(), 0);
    }
}

#[tokio::test]
async fn server_that_owes_a_reply_and_is_silent_is_given_up() {
    let patience = Duration::from_millis(50);
    let (connection, mut far, task) = open(patience);
    // One that owes nothing may be silent.
    tokio::time::sleep(patience * 3).await;
    assert!(!task.is_finished());
    let answered = get(&connection, "a");
    until_owed(&connection, 1).await;
    far.write_all(b"$1\r\n1\r\n").await.unwrap();
    assert!(answered.await.unwrap().is_ok());
    assert!(get(&connection, "b").await.unwrap().unwrap_err().is_io_error());
    assert_eq!(task.await.unwrap(), Ended::Silent(patience).to_string());
}

#[tokio::test]
async fn each_lookup_is_given_up_at_its_own_deadline_and_keeps_its_place() {
    let (connection, mut far, _task) = open(CONNECT_DEADLINE);
    let ask = |millis| {
        let (connection, deadline) =
            (Arc::clone(&connection), Instant::now() + Duration::from_millis(millis));
        tokio::spawn(async move {
            let asked = connection.ask(RECORD, deadline, |out| command(out, [&b"GET"[..], b"a"])).await;
            (asked.map(|reply| reply.record.bytes), Instant::now() >= deadline)
        })
    };
    let patient = get(&connection, "b");
    until_owed(&connection, 1).await;
    // The second is asked later and is to be given up earlier.
    let [late, early] = [120, 40].map(ask);
    until_owed(&connection, 3).await;
    for waiting in [early, late] {
        let (outcome, is_in_time) = timeout(CONNECT_DEADLINE, waiting).await.unwrap().unwrap();
        assert!(is_in_time && outcome.unwrap_err().is_timeout());
    }
    assert_eq!(connection.state.lock().owed.len(), 3);
    let next = get(&connection, "c");
    until_owed(&connection, 4).await;
    far.write_all(b"$1\r\n1\r\n$1\r\n2\r\n$1\r\n3\r\n$1\r\n4\r\n").await.unwrap();
    assert_eq!(patient.await.unwrap().unwrap(), "1");
    assert_eq!(next.await.unwrap().unwrap(), "4", "nobody gets the reply to another");
}

#[tokio::test]
async fn lookup_is_given_up_at_its_deadline_while_the_server_reads_nothing() {
    let (connection, _far, _task) = open_with(16, CONNECT_DEADLINE);
    let _patient = get(&connection, &"b".repeat(100));
    until_owed(&connection, 1).await;
    for millis in [80, 40] {
        // The driver is stuck in its write.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let deadline = Instant::now() + Duration::from_millis(millis);
        let asked = connection.ask(RECORD, deadline, |out| command(out, [&b"GET"[..], b"a"]));
        let outcome = timeout(CONNECT_DEADLINE / 2, asked).await.expect("it is given up");
        assert!(outcome.err().is_some_and(|error| error.is_timeout()));
    }
}

#[tokio::test]
async fn silent_server_is_given_up_although_more_and_more_is_asked() {
    let (connection, _far, task) = open(Duration::from_millis(50));
    let given_up = async {
        while !task.is_finished() {
            let asked = connection.ask(RECORD, later(), |out| command(out, [&b"GET"[..], b"a"]));
            let _ = futures::poll!(std::pin::pin!(asked));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(10), given_up).await.unwrap();
    assert!(task.await.unwrap().contains("did not reply"));
}

#[tokio::test]
async fn replies_that_are_owed_are_bounded() {
    let (connection, _far, _task) = open(CONNECT_DEADLINE);
    for _ in 0..MAX_OWED {
        let asked = connection.ask(RECORD, later(), |out| command(out, [&b"GET"[..], b"a"]));
        // Nobody waits for it.
        assert!(futures::poll!(std::pin::pin!(asked)).is_pending());
    }
    assert!(get(&connection, "a").await.unwrap().unwrap_err().is_io_error());
}

#[tokio::test]
async fn reply_in_pieces_of_any_length_is_read_whole() {
    let (connection, mut far, _task) = open(CONNECT_DEADLINE);
    let records: Vec<_> = [0, 1, 40_000, 65_536, 3].into_iter().map(|length| "x".repeat(length)).collect();
    let waiting: Vec<_> = records.iter().map(|_| get(&connection, "a")).collect();
    until_owed(&connection, records.len()).await;
    let replies: String = records.iter().map(|record| format!("${}\r\n{record}\r\n", record.len())).collect();
    for piece in replies.as_bytes().chunks(7_777) {
        far.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    for (record, waiting) in records.iter().zip(waiting) {
        assert_eq!(waiting.await.unwrap().unwrap(), *record);
    }
}

mod opening {
    use redis::{ConnectionAddr, ConnectionInfo, InfoDict, IntoConnectionInfo};
    use tokio::net::TcpListener;

    use super::*;
    use crate::{l2::generation::Mark, resolver::Resolver};

    const INFO: &str = "# Replication\r\nrole:master\r\nmaster_replid:aaaa\r\n";

    /// Opens a connection to a server that says this, and returns what the server was told.
    async fn connect(login: &str, replies: String) -> (anyhow::Result<Stream>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server: ConnectionInfo = format!("redis://{login}").into_connection_info().unwrap();
        let server = server.set_addr(ConnectionAddr::Tcp("127.0.0.1".to_owned(), port));
        let mark = Mark::read(&InfoDict::new(INFO)).unwrap();
        let endpoint = Endpoint::new(&server, None, &Resolver::default(), mark, CONNECT_DEADLINE).unwrap();
        let serving = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut told = vec![0; 1024];
            let length = stream.read(&mut told).await.unwrap();
            stream.write_all(replies.as_bytes()).await.unwrap();
            String::from_utf8(told[..length].to_vec()).unwrap()
        };
        tokio::join!(endpoint.connect(), serving)
    }

    fn info(text: &str) -> String {
        format!("${}\r\n{text}\r\n", text.len())
    }

    #[tokio::test]
    async fn connection_logs_in_and_leads_to_the_same_server() {
        let (opened, told) = connect("us:pw@host/3", format!("+OK\r\n+OK\r\n{}", info(INFO))).await;
        opened.unwrap();
        assert_eq!(
            told,
            "*3\r\n$4\r\nAUTH\r\n$2\r\nus\r\n$2\r\npw\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n*2\r\n$4\r\nINFO\r\n$11\r\nreplication\r\n"
        );
        let (opened, told) = connect(":pw@host", format!("+OK\r\n{}", info(INFO))).await;
        opened.unwrap();
        assert!(told.starts_with("*2\r\n$4\r\nAUTH\r\n$2\r\npw\r\n*2\r\n$4\r\nINFO"), "{told}");
    }

    #[tokio::test]
    async fn another_server_or_role_is_refused() {
        for (login, replies) in [
            ("host", info(&INFO.replace("aaaa", "bbbb"))),
            ("host", info(&INFO.replace("role:master", "role:slave"))),
            ("host", info("")),
            ("host", "+OK\r\n".to_owned()),
            ("host", format!("{}+OK\r\n", info(INFO))),
            ("host", "-NOPERM no\r\n".to_owned()),
            ("host", "HTTP/1.1 400 Bad Request\r\n".to_owned()),
            ("host", String::new()),
            ("host", "$5\r\nab".to_owned()),
            (
                ":pw@host",
                format!("-ERR unknown command `AUTH`, with args beginning with: `pw`\r\n{}", info(INFO)),
            ),
            ("host/3", format!("-ERR no such database\r\n{}", info(INFO))),
        ] {
            let (opened, _) = connect(login, replies.clone()).await;
            let error = format!("{:#}", opened.err().unwrap_or_else(|| panic!("{replies:?}")));
            assert!(!error.contains("pw"), "{error}");
        }
    }
}

#[tokio::test]
async fn lookups_ask_for_fields_and_record() {
    let mut out = Vec::new();
    let (version, name) = (PurgeName::version("shape"), PurgeName::tag("a"));
    let question = Question::new("larder:ns/p:barriers:", version);
    write_lookup(&mut out, &question, &[name], Some("key"));
    let mut expected =
        b"*10\r\n$5\r\nHMGET\r\n$21\r\nlarder:ns/p:barriers:\r\n$1\r\nv\r\n$1\r\ng\r\n$1\r\ns\r\n$1\r\nf\r\n"
            .to_vec();
    for name in [PurgeName::ANY_PREFIX, PurgeName::ANY_SOFT, version, name] {
        expected.extend_from_slice(&[b"$16\r\n", &name.as_bytes()[..], b"\r\n"].concat());
    }
    expected.extend_from_slice(b"*4\r\n$8\r\nGETRANGE\r\n$3\r\nkey\r\n$1\r\n0\r\n$5\r\n65535\r\n");
    assert_eq!(out.escape_ascii().to_string(), expected.escape_ascii().to_string());
}
