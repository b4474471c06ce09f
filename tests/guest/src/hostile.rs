//! Agents that mean harm: each has the port of the agent, and does to the host what its manner is.

use std::{
    error::Error,
    fs::File,
    io::{Read, Write},
    thread,
    time::Duration,
};

use brood_agent_protocol::{
    AgentHello, Decoder, Direction, Ended, Event, Message, Received, Reply, RequestId, SessionId,
    Stream, ToGuest, ToHost, encode,
    limits::{MAX_DATA, VERSION},
};
use serde::{Deserialize, Serialize};

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Random bytes without end, whatever is asked.
    Garbage,
    /// A frame that does not end.
    Endless,
    /// Nothing at all.
    Deaf,
    /// A hello, and then nothing.
    Silent,
    /// Answers to requests and sessions that there are not, and answers to something else.
    Wrong,
    /// Messages that say they hold more than the host has memory.
    Lengths,
    /// More data and events than anybody wants.
    Flood,
    /// Halves of frames.
    Halves,
}

impl Manner {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "garbage" => Self::Garbage,
            "endless" => Self::Endless,
            "deaf" => Self::Deaf,
            "silent" => Self::Silent,
            "wrong" => Self::Wrong,
            "lengths" => Self::Lengths,
            "flood" => Self::Flood,
            "halves" => Self::Halves,
            _ => return None,
        })
    }
}

/// Serves the port until it is killed.
pub(crate) fn serve(manner: &str, port: &str) -> Result<(), Box<dyn Error>> {
    let manner = Manner::named(manner).ok_or("there is no such manner")?;
    loop {
        if let Ok(file) = File::options().read(true).write(true).open(port) {
            // The host may be away: that is an error of a write or the end of a read.
            let _ = talk(manner, &file);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn talk(manner: Manner, port: &File) -> std::io::Result<()> {
    let mut writer = port;
    match manner {
        Manner::Garbage => loop {
            let mut bytes = vec![0; 16 * 1024];
            File::open("/dev/urandom")?.read_exact(&mut bytes)?;
            writer.write_all(&bytes)?;
        },
        Manner::Endless => loop {
            writer.write_all(&[1; 16 * 1024])?;
        },
        Manner::Deaf => loop {
            thread::sleep(Duration::from_secs(1000));
        },
        _ => answer(manner, port),
    }
}

fn answer(manner: Manner, port: &File) -> std::io::Result<()> {
    let (mut reader, mut writer) = (port, port);
    let mut decoder = Decoder::<ToGuest>::default();
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let length = reader.read(&mut bytes)?;
        if length == 0 {
            return Ok(());
        }
        let mut rest = &bytes[..length];
        while let Some(received) = decoder.next(&mut rest) {
            let frames = frames(manner, &received);
            let half = frames.len() / 2;
            match manner {
                Manner::Halves => writer.write_all(&frames[..half])?,
                _ => writer.write_all(&frames)?,
            }
            if manner == Manner::Flood && matches!(received.message, Ok(ToGuest::Request(_))) {
                flood(&received, writer)?;
            }
        }
    }
}

fn frame<M: Message>(session: SessionId, request: RequestId, message: &M, out: &mut Vec<u8>) {
    encode(session, request, message, out).expect("it fits a frame");
}

/// What it answers to a message.
fn frames(manner: Manner, received: &Received<ToGuest>) -> Vec<u8> {
    let (session, request) = (received.session, received.request);
    let mut out = Vec::new();
    match &received.message {
        Ok(ToGuest::Hello(_)) => {
            let hello = ToHost::Hello(AgentHello {
                version: VERSION,
                instance: [7; 16],
                agent: "hostile".to_owned(),
                system: "linux".to_owned(),
            });
            frame(session, request, &hello, &mut out);
        }
        Ok(ToGuest::Request(_)) if manner == Manner::Wrong => {
            let done = ToHost::Done(Ok(Reply::Ended(Ended::Code(0))));
            for other in [0, request.0 + 1, u32::MAX] {
                frame(session, RequestId(other), &done, &mut out);
            }
            frame(SessionId(session.0 ^ 2), request, &done, &mut out);
            // An answer to nothing that it can have been asked.
            let entries = ToHost::Done(Ok(Reply::Entries {
                entries: Vec::new(),
                more: true,
            }));
            frame(session, request, &entries, &mut out);
            frame(session, request, &done, &mut out);
        }
        Ok(ToGuest::Request(_)) if manner == Manner::Lengths => {
            // The numbers of Data, of Output, and of a length in bytes; then those of Done, of
            // success, of Entries, and of a length in elements.
            frame(session, request, &Numbers(vec![4, 1, 1 << 40]), &mut out);
            let entries = Numbers(vec![6, 0, 5, u64::from(u32::MAX)]);
            frame(session, request, &entries, &mut out);
        }
        _ => {}
    }
    out
}

fn flood(received: &Received<ToGuest>, mut writer: &File) -> std::io::Result<()> {
    let mut out = Vec::new();
    let (session, request) = (received.session, received.request);
    let started = ToHost::Event(Event::Started { pid: 1 });
    let data = ToHost::Data(Stream::Output, vec![b'x'; MAX_DATA]);
    for _ in 0..64 {
        frame(session, request, &started, &mut out);
    }
    frame(session, request, &data, &mut out);
    for _ in 0..10_000 {
        writer.write_all(&out)?;
    }
    Ok(())
}

/// A message of numbers, each of any length.
#[derive(Debug, Serialize, Deserialize)]
struct Numbers(#[serde(serialize_with = "one_by_one", skip_deserializing)] Vec<u64>);

/// Without the length that a list has before it.
fn one_by_one<S: serde::Serializer>(numbers: &[u64], serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeTuple;

    let mut tuple = serializer.serialize_tuple(numbers.len())?;
    for number in numbers {
        tuple.serialize_element(number)?;
    }
    tuple.end()
}

impl Message for Numbers {
    const DIRECTION: Direction = Direction::ToHost;

    fn data(&self) -> Option<&[u8]> {
        None
    }
}
