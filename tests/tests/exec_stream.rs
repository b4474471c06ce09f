//! Streams of programs in guests over websockets of the API.

use std::{future::Future, time::Duration};

use brood_tests::{Daemon, Home, PATIENCE, TOKEN, text, until};
use futures_util::{SinkExt, StreamExt, stream::SplitStream};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        http::{HeaderValue, Request},
        protocol::Role,
    },
};

const MIB: usize = 1 << 20;

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // For many programs, one after the other.
    let limit = PATIENCE * 3;
    runtime.block_on(async { timeout(limit, work).await.expect("it ends in time") })
}

/// A request for the stream of a program in a guest.
fn request(host: &str, guest: &str, protocols: &str) -> Request<()> {
    let address = format!("ws://{host}/api/v1/guests/{guest}/exec");
    let mut request = address.into_client_request().unwrap();
    let protocols = HeaderValue::from_str(protocols).unwrap();
    request
        .headers_mut()
        .insert("sec-websocket-protocol", protocols);
    request
}

type Socket = WebSocketStream<UnixStream>;

/// Opens a websocket over the daemon's socket.
async fn open(daemon: &Daemon, guest: &str) -> Socket {
    let stream = UnixStream::connect(daemon.socket()).await.unwrap();
    let opened = client_async(request("brood", guest, "brood.exec"), stream).await;
    let (socket, response) = opened.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "brood.exec");
    socket
}

/// The same, and starts a shell's line, with more of its start.
async fn sh(daemon: &Daemon, guest: &str, line: &str, more: Value) -> Socket {
    let mut start = json!({ "type": "start", "command": ["sh", "-c", line] });
    let more = more.as_object().unwrap().clone();
    start.as_object_mut().unwrap().extend(more);
    let mut socket = open(daemon, guest).await;
    say(&mut socket, &start).await;
    socket
}

async fn say<S>(socket: &mut WebSocketStream<S>, message: &Value)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    socket
        .send(Message::text(message.to_string()))
        .await
        .unwrap();
}

/// All that came of a program.
#[derive(Debug, Default)]
struct Heard {
    output: Vec<u8>,
    error: Vec<u8>,
    /// The last text message.
    last: Value,
    code: u16,
}

impl Heard {
    /// Takes a message; whether it was the last.
    fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Binary(bytes) => match bytes.split_first() {
                Some((1, rest)) => self.output.extend(rest),
                Some((2, rest)) => self.error.extend(rest),
                other => panic!("{other:?}"),
            },
            Message::Text(text) => self.last = serde_json::from_str(&text).unwrap(),
            Message::Close(frame) => {
                self.code = frame.expect("a reason").code.into();
                return true;
            }
            _ => {}
        }
        false
    }

    fn says(&self) -> &str {
        text(&self.last["type"])
    }
}

/// Hears a stream to its end.
async fn hear<S>(stream: &mut S) -> Heard
where
    S: StreamExt<Item = tungstenite::Result<Message>> + Unpin,
{
    let mut heard = Heard::default();
    while let Some(message) = stream.next().await {
        if heard.take(message.unwrap()) {
            break;
        }
    }
    heard
}

/// Hears a stream until this was written.
async fn hear_until(socket: &mut Socket, words: &str) -> Heard {
    let mut heard = Heard::default();
    while !String::from_utf8_lossy(&heard.output).contains(words) {
        let message = socket.next().await.expect("more").unwrap();
        assert!(!heard.take(message), "{heard:?}");
    }
    heard
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Memory of a process, in bytes.
fn resident(pid: i32) -> usize {
    let facts = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages = facts.split(' ').nth(1).unwrap();
    pages.parse::<usize>().unwrap() * 4096
}

/// Whether a program with these words runs in a guest.
fn runs(home: &Home, guest: &str, words: &str) -> bool {
    let (first, rest) = words.split_at(1);
    let line = format!("ps -o args | grep -c '^[{first}]{rest}'");
    let ran = home.brood(&["exec", guest, "--", "sh", "-c", &line]);
    ran.stdout.trim() != "0"
}

#[test]
fn the_daemon_waits_for_the_answer_to_its_close() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let daemon = Daemon::start(&home);
    block_on(async {
        let socket = sh(&daemon, "a-1", "echo said", json!({})).await;
        // From here on nothing answers by itself.
        let mut stream = socket.into_inner();
        let (mut heard, mut bytes) = (Vec::new(), [0; 256]);
        // A close is two bytes of head, and two of the code 1000.
        while !heard.ends_with(&[0x88, 2, 0x03, 0xe8]) {
            let length = stream.read(&mut bytes).await.unwrap();
            assert!(length > 0, "it closed after {heard:?}");
            heard.extend_from_slice(&bytes[..length]);
        }
        let more = timeout(Duration::from_millis(500), stream.read(&mut bytes)).await;
        assert!(more.is_err(), "it went without an answer: {more:?}");
        // A close with a mask of zeros.
        let answer = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];
        stream.write_all(&answer).await.unwrap();
        assert_eq!(stream.read(&mut bytes).await.unwrap(), 0, "it goes then");
    });
}

#[test]
fn a_program_is_streamed_both_ways() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let daemon = Daemon::start(&home);
    block_on(async {
        // Streams apart, environment, folder, exit code.
        let more = json!({ "env": { "A": "b" }, "cwd": "/etc" });
        let line = "echo $A; pwd; echo err >&2; cat; exit 7";
        let heard = hear(&mut sh(&daemon, "a-1", line, more).await).await;
        assert_eq!(heard.output, b"b\n/etc\n");
        assert_eq!(heard.error, b"err\n");
        let exited = json!({ "type": "exited", "code": 7, "signal": null, "timed_out": false });
        assert_eq!((heard.last, heard.code), (exited, 1000));
        // Output comes while the program runs; a signal reaches it.
        let line = "trap 'echo caught; exit 5' INT; echo on; while :; do sleep 0.1; done";
        let mut socket = sh(&daemon, "a-1", line, json!({})).await;
        hear_until(&mut socket, "on\n").await;
        say(&mut socket, &json!({ "type": "signal", "signal": 2 })).await;
        let heard = hear(&mut socket).await;
        assert_eq!(heard.output, b"caught\n");
        assert_eq!(heard.last["code"], 5);
        // One that a signal ends, and one whose time is over.
        let heard = hear(&mut sh(&daemon, "a-1", "kill -9 $$", json!({})).await).await;
        assert_eq!(
            (&heard.last["code"], &heard.last["signal"]),
            (&json!(137), &json!(9))
        );
        let more = json!({ "timeout_s": 0.5 });
        let heard = hear(&mut sh(&daemon, "a-1", "sleep 100", more).await).await;
        assert_eq!(
            (&heard.last["code"], &heard.last["timed_out"]),
            (&json!(124), &json!(true))
        );
        // A terminal, of two sizes.
        let more = json!({ "terminal": { "rows": 30, "columns": 90 }, "input": true });
        let line = "stty size; read word; stty size; echo $word";
        let mut socket = sh(&daemon, "a-1", line, more).await;
        hear_until(&mut socket, "30 90").await;
        say(
            &mut socket,
            &json!({ "type": "resize", "rows": 31, "columns": 91 }),
        )
        .await;
        socket.send(Message::binary(&b"typed\n"[..])).await.unwrap();
        let heard = hear(&mut socket).await;
        let said = String::from_utf8(heard.output).unwrap();
        assert!(
            said.contains("31 91") && said.ends_with("typed\r\n"),
            "{said:?}"
        );
        // Ten megabytes there and back.
        let sent: Vec<u8> = (0_u32..)
            .flat_map(u32::to_be_bytes)
            .take(10 * MIB)
            .collect();
        let socket = sh(&daemon, "a-1", "cat", json!({ "input": true })).await;
        let (mut sink, mut stream) = socket.split();
        let sending = async {
            for part in sent.chunks(MIB - 77) {
                sink.send(Message::binary(part.to_vec())).await.unwrap();
            }
            let end = json!({ "type": "end-of-input" }).to_string();
            sink.send(Message::text(end)).await.unwrap();
        };
        let ((), heard) = tokio::join!(sending, hear(&mut stream));
        assert_eq!(Sha256::digest(&heard.output), Sha256::digest(&sent));
        assert_eq!(heard.last["code"], 0);
    });
}

#[test]
fn a_slow_reader_stops_the_program_and_a_hang_up_kills_it() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let daemon = Daemon::start(&home);
    let memory = || resident(daemon.pid());
    block_on(async {
        let mut socket = sh(&daemon, "a-1", "exec yes 4711", json!({})).await;
        hear_until(&mut socket, "4711").await;
        let before = memory();
        // Nobody reads: what is on its way stays bounded, and others are served.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let heard = hear(&mut sh(&daemon, "a-1", "echo other", json!({})).await).await;
        assert_eq!(heard.output, b"other\n");
        let after = memory();
        assert!(after < before + (16 << 20), "{before} to {after} bytes");
        // It goes on where it was.
        hear_until(&mut socket, "4711\n4711\n4711").await;
        // A client that closes its connection, and one that just goes; the second has sent more than
        // its program takes.
        let more = json!({ "input": true });
        let mut stuck = sh(&daemon, "a-1", "echo on; exec sleep 4712", more).await;
        hear_until(&mut stuck, "on").await;
        let part = Message::binary(vec![b'x'; MIB]);
        while timeout(Duration::from_secs(1), stuck.send(part.clone()))
            .await
            .is_ok()
        {}
        socket.close(None).await.unwrap();
        drop(stuck);
    });
    for words in ["yes 4711", "sleep 4712"] {
        until("its end", || (!runs(&home, "a-1", words)).then_some(()));
    }
    // A program that takes no more of its input ends as any other.
    block_on(async {
        let more = json!({ "input": true });
        let mut socket = sh(&daemon, "a-1", "exec true", more).await;
        let _ = socket.send(Message::binary(vec![b'x'; MIB])).await;
        assert_eq!(hear(&mut socket).await.last["code"], 0);
    });
}

#[test]
fn hostile_clients_are_told_and_harm_nobody() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let daemon = Daemon::on_a_port(&home);
    block_on(async {
        let mut good = sh(&daemon, "a-1", "echo on; cat", json!({ "input": true })).await;
        hear_until(&mut good, "on").await;
        // Those who say what makes no sense.
        let kind = |heard: &Heard| {
            assert_eq!((heard.says(), heard.code), ("failed", 1008), "{heard:?}");
            let kind = text(&heard.last["problem"]["type"]).rsplit(':').next();
            kind.unwrap().to_owned()
        };
        let start = |rest: &str| Message::text(format!("{{ \"type\": \"start\", {rest} }}"));
        let run = || start("\"command\": [\"sleep\", \"4711\"]");
        for (messages, expected) in [
            (vec![Message::binary(vec![0; 100])], "bad-request"),
            (vec![Message::text("no JSON")], "bad-request"),
            (
                vec![Message::text("{\"type\": \"end-of-input\"}")],
                "bad-request",
            ),
            (vec![start("\"command\": []")], "bad-request"),
            (
                vec![start("\"command\": [\"a\"], \"more\": 1")],
                "bad-request",
            ),
            (vec![start("\"command\": [\"a\\u0000b\"]")], "bad-request"),
            (
                vec![start("\"command\": [\"cat\"], \"timeout_s\": -1")],
                "bad-request",
            ),
            (
                vec![start("\"command\": [\"no-such-program\"]")],
                "not-in-guest",
            ),
            (vec![run(), run()], "bad-request"),
            (vec![run(), Message::binary(vec![0])], "bad-request"),
            (
                vec![
                    run(),
                    Message::text("{\"type\": \"signal\", \"signal\": 0}"),
                ],
                "bad-request",
            ),
            (
                vec![
                    run(),
                    Message::text("{\"type\": \"resize\", \"rows\": 1, \"columns\": 1}"),
                ],
                "bad-request",
            ),
            (vec![Message::text("x".repeat(2 * MIB))], "bad-request"),
        ] {
            let mut socket = open(&daemon, "a-1").await;
            for message in &messages {
                // It may have been refused already.
                let _ = socket.send(message.clone()).await;
            }
            let heard = hear(&mut socket).await;
            assert_eq!(kind(&heard), expected, "{messages:?}");
        }
        let mut socket = open(&daemon, "b-1").await;
        socket.send(run()).await.unwrap();
        assert_eq!(kind(&hear(&mut socket).await), "no-such-guest");
        // One that says nothing, and one that speaks another protocol after the upgrade.
        let mut silent = open(&daemon, "a-1").await;
        let mut garbage = open(&daemon, "a-1").await.into_inner();
        garbage.write_all(&[0xff; 4096]).await.unwrap();
        let mut garbage = WebSocketStream::from_raw_socket(garbage, Role::Client, None).await;
        while let Some(Ok(_)) = garbage.next().await {}
        assert_eq!(kind(&hear(&mut silent).await), "no-start");
        // The good one has noticed nothing.
        good.send(Message::binary(&b"still\n"[..])).await.unwrap();
        hear_until(&mut good, "still").await;
        say(&mut good, &json!({ "type": "end-of-input" })).await;
        assert_eq!(hear(&mut good).await.last["code"], 0);

        // The port wants the token, as a header or as a subprotocol.
        let host = format!("127.0.0.1:{}", daemon.port());
        let connect = async |request: Request<()>| {
            let stream = TcpStream::connect(&host).await.unwrap();
            client_async(request, stream)
                .await
                .map(|(socket, _)| socket)
        };
        for protocols in [
            "brood.exec".to_owned(),
            format!(
                "brood.exec, brood.token.{}",
                hex(b"another-token-0123456789")
            ),
            format!("brood.exec, brood.token.{}z", hex(TOKEN.as_bytes())),
        ] {
            let refused = connect(request(&host, "a-1", &protocols)).await;
            match refused {
                Err(tungstenite::Error::Http(response)) => assert_eq!(response.status(), 401),
                other => panic!("{protocols}: {other:?}"),
            }
        }
        let mut by_header = request(&host, "a-1", "brood.exec");
        let bearer = HeaderValue::from_str(&format!("Bearer {TOKEN}")).unwrap();
        by_header.headers_mut().insert("authorization", bearer);
        let protocols = format!("brood.exec, brood.token.{}", hex(TOKEN.as_bytes()));
        for request in [by_header, request(&host, "a-1", &protocols)] {
            let mut socket = connect(request).await.unwrap();
            socket
                .send(start("\"command\": [\"hostname\"]"))
                .await
                .unwrap();
            assert_eq!(hear(&mut socket).await.output, b"a-1\n");
        }
    });
    // A request that opens no websocket is answered as any other.
    let plain = daemon.send(reqwest::Method::GET, "/api/v1/guests/a-1/exec", 400);
    assert!(text(&plain["hint"]).contains("POST"), "{plain}");
}

#[test]
fn streams_are_bounded_and_leave_room() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let daemon = Daemon::start(&home);
    block_on(async {
        let mut held: Vec<SplitStream<Socket>> = Vec::new();
        for _ in 0..16 {
            let mut socket = sh(&daemon, "a-1", "echo on; exec sleep 4711", json!({})).await;
            hear_until(&mut socket, "on").await;
            held.push(socket.split().1);
        }
        let heard = hear(&mut sh(&daemon, "a-1", "echo more", json!({})).await).await;
        let kind = text(&heard.last["problem"]["type"]).to_owned();
        assert!(kind.ends_with("busy"), "{kind}");
        assert_eq!(heard.code, 1011);
    });
    // They have gone: there is room again.
    until("their end", || {
        (!runs(&home, "a-1", "sleep 4711")).then_some(())
    });
    block_on(async {
        let heard = hear(&mut sh(&daemon, "a-1", "echo more", json!({})).await).await;
        assert_eq!(heard.output, b"more\n");
    });
}
