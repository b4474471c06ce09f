//! Both decoders over streams that are cut, torn, damaged and made up.

use brood_agent_protocol::{
    AgentHello, Change, ChangeKind, Decoder, EncodeError, Entry, Event, Exec, Failure, FailureKind,
    FileKind, HostHello, Message, Metadata, OsBytes, Reply, Request, RequestId, SessionId, Step,
    StepReply, StepResult, StepResults, Stream, TerminalSize, ToGuest, ToHost, Undecodable,
    WriteFile, encode,
    limits::{MAX_BODY, MAX_DATA, MAX_LIST},
};
use proptest::{collection::vec, option, prelude::*};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error, ser::SerializeTuple};

/// A message of any bytes at all, behind a right head and checksum.
#[derive(Debug, Clone)]
struct Raw<const TO_GUEST: bool>(Vec<u8>);

impl<const TO_GUEST: bool> Serialize for Raw<TO_GUEST> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut tuple = to.serialize_tuple(self.0.len())?;
        for byte in &self.0 {
            tuple.serialize_element(byte)?;
        }
        tuple.end()
    }
}

impl<'de, const TO_GUEST: bool> Deserialize<'de> for Raw<TO_GUEST> {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom("only sent"))
    }
}

impl<const TO_GUEST: bool> Message for Raw<TO_GUEST> {
    const DIRECTION: brood_agent_protocol::Direction = if TO_GUEST {
        brood_agent_protocol::Direction::ToGuest
    } else {
        brood_agent_protocol::Direction::ToHost
    };

    fn data(&self) -> Option<&[u8]> {
        None
    }
}

fn frame<M: Message>(message: &M) -> Vec<u8> {
    let mut out = Vec::new();
    encode(SessionId(7), RequestId(9), message, &mut out).unwrap();
    out
}

/// All messages in `bytes`, which come in these pieces.
fn decode<M: Message>(bytes: &[u8], pieces: &[usize]) -> Vec<Result<M, Undecodable>> {
    let mut decoder = Decoder::<M>::default();
    let mut messages = Vec::new();
    let mut rest = bytes;
    let mut pieces = pieces.iter().cycle();
    while !rest.is_empty() {
        let length = pieces.next().map_or(rest.len(), |piece| *piece);
        let (mut piece, after) = rest.split_at(length.min(rest.len()));
        while let Some(received) = decoder.next(&mut piece) {
            messages.push(received.message);
        }
        assert!(piece.is_empty());
        rest = after;
    }
    messages
}

fn os_bytes() -> impl Strategy<Value = OsBytes> {
    vec(any::<u8>(), 0..40).prop_map(OsBytes::from)
}

fn exec() -> impl Strategy<Value = Exec> {
    let size =
        (any::<u16>(), any::<u16>()).prop_map(|(rows, columns)| TerminalSize { rows, columns });
    (
        vec(os_bytes(), 0..6),
        vec((os_bytes(), os_bytes()), 0..6),
        option::of(os_bytes()),
        option::of("[a-z]{0,12}"),
        (any::<bool>(), any::<bool>()),
        option::of(size),
        option::of(any::<u32>()),
    )
        .prop_map(
            |(argv, env, cwd, user, (input, keep), terminal, limit_ms)| Exec {
                argv,
                env,
                cwd,
                user,
                input,
                terminal,
                limit_ms,
                keep,
            },
        )
}

fn to_guest() -> impl Strategy<Value = ToGuest> {
    prop_oneof![
        (any::<u16>(), any::<u16>())
            .prop_map(|(oldest, newest)| ToGuest::Hello(HostHello { oldest, newest })),
        exec().prop_map(|exec| ToGuest::Request(Request::Exec(exec))),
        (os_bytes(), any::<u32>(), any::<bool>()).prop_map(|(path, mode, sync)| {
            ToGuest::Request(Request::WriteFile(WriteFile {
                path,
                mode,
                user: None,
                parents: true,
                sync,
                digest: false,
            }))
        }),
        vec(any::<u8>(), 0..512).prop_map(|entropy| ToGuest::Request(Request::Reseed { entropy })),
        (
            vec(any::<u8>(), 0..512),
            vec(os_bytes(), 0..6),
            any::<u64>()
        )
            .prop_map(|(entropy, paths, set)| {
                let freeze = Step::Freeze { paths, limit_ms: 7 };
                let steps = vec![Step::Reseed { entropy }, Step::Clock { set }, freeze];
                ToGuest::Request(Request::Steps(steps))
            }),
        vec(0..2u8, 0..2000).prop_map(ToGuest::Data),
        any::<u32>().prop_map(|bytes| ToGuest::Credit(Stream::Error, bytes)),
        Just(ToGuest::Cancel),
    ]
}

fn to_host() -> impl Strategy<Value = ToHost> {
    let change = (os_bytes(), any::<bool>()).prop_map(|(path, directory)| Change {
        path,
        kind: ChangeKind::MovedTo,
        directory,
    });
    let entry = (
        os_bytes(),
        any::<u64>(),
        any::<i64>(),
        option::of(os_bytes()),
    )
        .prop_map(|(name, size, modified_ns, target)| Entry {
            name,
            metadata: Metadata {
                kind: FileKind::Link,
                size,
                mode: 0o644,
                uid: 0,
                gid: 1,
                modified_ns,
                target,
            },
        });
    prop_oneof![
        (any::<[u8; 16]>(), "\\PC{0,20}").prop_map(|(instance, agent)| {
            ToHost::Hello(AgentHello {
                version: 1,
                instance,
                agent,
                system: "linux".to_owned(),
            })
        }),
        (vec(change, 0..20), any::<bool>())
            .prop_map(|(changes, lost)| ToHost::Event(Event::Changes { changes, lost })),
        vec(0..2u8, 0..2000).prop_map(|bytes| ToHost::Data(Stream::Output, bytes)),
        (vec(entry, 0..10), any::<bool>())
            .prop_map(|(entries, more)| ToHost::Done(Ok(Reply::Entries { entries, more }))),
        ("\\PC{0,100}", any::<u32>()).prop_map(|(text, took_us)| {
            let result = Err(Failure::new(FailureKind::Other, text));
            let done = StepResult {
                result: Ok(StepReply::Nothing),
                took_us,
            };
            ToHost::Done(Ok(Reply::Steps(StepResults {
                results: vec![done, StepResult { result, took_us }],
                took_us: u64::from(took_us) * 2,
            })))
        }),
        "\\PC{0,2000}".prop_map(|text| ToHost::Done(Err(Failure::new(FailureKind::Full, text)))),
    ]
}

/// What may stand between two frames. `cut` is a part of a frame without its end.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let cut = (to_guest(), any::<prop::sample::Index>()).prop_map(|(message, at)| {
        let mut frame = frame(&message);
        frame.truncate(at.index(frame.len() - 2));
        frame
    });
    let damaged =
        (to_host(), any::<prop::sample::Index>(), 1..=255u8).prop_map(|(message, at, flip)| {
            let mut frame = frame(&message);
            let at = 1 + at.index(frame.len() - 2);
            frame[at] ^= flip;
            frame
        });
    let echo = to_host().prop_map(|message| frame(&message));
    let overlong = (1..255u8, MAX_BODY..3 * MAX_BODY).prop_map(|(byte, length)| vec![byte; length]);
    prop_oneof![
        4 => vec(any::<u8>(), 0..300),
        2 => vec(0..3u8, 0..300),
        4 => cut,
        2 => damaged,
        2 => echo,
        1 => overlong,
        3 => Just(Vec::new()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn messages_survive_any_pieces(
        down in vec(to_guest(), 0..6),
        up in vec(to_host(), 0..6),
        pieces in vec(1..200usize, 1..8),
    ) {
        let bytes: Vec<u8> = down.iter().flat_map(frame).collect();
        let decoded: Vec<_> = decode::<ToGuest>(&bytes, &pieces);
        prop_assert_eq!(decoded, down.into_iter().map(Ok).collect::<Vec<_>>());
        let bytes: Vec<u8> = up.iter().flat_map(frame).collect();
        let decoded: Vec<_> = decode::<ToHost>(&bytes, &pieces);
        prop_assert_eq!(decoded, up.into_iter().map(Ok).collect::<Vec<_>>());
    }

    /// Whatever stands before a frame, it is found, and nothing else is.
    #[test]
    fn frames_are_found_after_garbage(
        parts in vec((garbage(), to_guest()), 1..6),
        pieces in vec(1..3000usize, 1..8),
    ) {
        let mut bytes = Vec::new();
        for (garbage, message) in &parts {
            bytes.extend_from_slice(garbage);
            bytes.extend(frame(message));
        }
        let decoded: Vec<_> = decode::<ToGuest>(&bytes, &pieces);
        let sent: Vec<_> = parts.into_iter().map(|(_, message)| Ok(message)).collect();
        prop_assert_eq!(decoded, sent);
    }

    /// Any body behind a right checksum is decoded or refused; the next frame is found.
    #[test]
    fn any_body_is_taken_or_refused(body in vec(any::<u8>(), 0..400)) {
        let mut bytes = frame(&Raw::<true>(body.clone()));
        bytes.extend(frame(&ToGuest::Cancel));
        let decoded: Vec<_> = decode::<ToGuest>(&bytes, &[]);
        prop_assert_eq!(decoded.len(), 2);
        prop_assert_eq!(&decoded[1], &Ok(ToGuest::Cancel));
        let mut bytes = frame(&Raw::<false>(body));
        bytes.extend(frame(&ToHost::Credit(1)));
        let decoded: Vec<_> = decode::<ToHost>(&bytes, &[]);
        prop_assert_eq!(decoded.len(), 2);
        prop_assert_eq!(&decoded[1], &Ok(ToHost::Credit(1)));
    }

    /// A message of which any byte is changed is decoded or refused.
    #[test]
    fn a_changed_body_is_taken_or_refused(
        message in to_host(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut body = postcard::to_allocvec(&message).unwrap();
        let at = at.index(body.len());
        body[at] = byte;
        prop_assert_eq!(decode::<ToHost>(&frame(&Raw::<false>(body)), &[]).len(), 1);
    }
}

#[test]
fn a_frame_of_the_other_direction_is_an_echo() {
    let mut decoder = Decoder::<ToHost>::default();
    let bytes = frame(&ToGuest::Cancel);
    assert_eq!(decoder.next(&mut bytes.as_slice()), None);
    assert_eq!(decoder.dropped().echoes, 1);
    assert_eq!(decoder.dropped().garbage, 0);
}

#[test]
fn no_message_is_longer_than_a_frame_and_no_data_longer_than_allowed() {
    let long = ToGuest::Request(Request::Reseed {
        entropy: vec![1; MAX_BODY],
    });
    let mut out = Vec::new();
    let refused = encode(SessionId(1), RequestId(1), &long, &mut out);
    assert!(matches!(refused, Err(EncodeError::TooLong(_))));
    assert_eq!(out, []);

    let fits = ToGuest::Data(vec![0; MAX_DATA]);
    assert_eq!(decode::<ToGuest>(&frame(&fits), &[]), [Ok(fits)]);
    let long = frame(&ToGuest::Data(vec![0; MAX_DATA + 1]));
    assert_eq!(decode::<ToGuest>(&long, &[]), [Err(Undecodable)]);
}

#[test]
fn a_list_has_at_most_so_many_elements() {
    let exec = |count| {
        ToGuest::Request(Request::Exec(Exec {
            argv: vec![OsBytes::default(); count],
            ..Exec::default()
        }))
    };
    let fits = exec(MAX_LIST);
    assert_eq!(decode::<ToGuest>(&frame(&fits), &[]), [Ok(fits)]);
    let long = frame(&exec(MAX_LIST + 1));
    assert_eq!(decode::<ToGuest>(&long, &[]), [Err(Undecodable)]);
}

/// The example of `docs/agent.md`, byte by byte.
#[test]
fn a_hello_as_the_document_has_it() {
    let hello = ToGuest::Hello(HostHello {
        oldest: 1,
        newest: 1,
    });
    let mut out = Vec::new();
    let session = SessionId(0x0807_0605_0403_0201);
    encode(session, RequestId::NONE, &hello, &mut out).unwrap();
    let text: Vec<_> = out.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = text.join(" ");
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/agent.md");
    let document = std::fs::read_to_string(document).unwrap();
    assert!(document.contains(&text), "docs/agent.md lacks: {text}");
}
