//! The protocol between brood and the agent: what each end reads. Whole streams, and messages in frames that are right.
#![no_main]

use brood_agent_protocol::{
    Decoder, Direction, Message, RequestId, SessionId, ToGuest, ToHost, encode,
    limits::{MAX_BODY, MAX_DATA},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error, ser::SerializeTuple};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((mode, bytes)) = input.split_first() else {
        return;
    };
    match mode % 4 {
        0 => stream::<ToHost>(bytes),
        1 => stream::<ToGuest>(bytes),
        2 => message::<ToHost, false>(bytes),
        _ => message::<ToGuest, true>(bytes),
    }
});

/// However a stream is cut, the same comes out.
fn stream<M: Message + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let whole = decode::<M>(bytes, bytes.len().max(1));
    assert_eq!(whole, decode::<M>(bytes, 3));
    for message in whole.into_iter().flatten() {
        again(message);
    }
}

fn decode<M: Message>(bytes: &[u8], part: usize) -> Vec<Option<M>> {
    let mut decoder = Decoder::<M>::default();
    let mut messages = Vec::new();
    for mut part in bytes.chunks(part) {
        while let Some(received) = decoder.next(&mut part) {
            messages.push(received.message.ok());
        }
    }
    let dropped = decoder.dropped();
    assert!(dropped.garbage <= bytes.len() as u64 && dropped.echoes <= bytes.len() as u64);
    messages
}

/// What was read can be sent, and is then read as the same.
fn again<M: Message + PartialEq + std::fmt::Debug>(message: M) {
    let mut frame = Vec::new();
    if encode(SessionId(7), RequestId(9), &message, &mut frame).is_ok() {
        assert_eq!(decode::<M>(&frame, frame.len()), [Some(message)]);
    }
}

fn message<M: Message + PartialEq + std::fmt::Debug, const TO_GUEST: bool>(bytes: &[u8]) {
    let mut frame = Vec::new();
    let raw = Raw::<TO_GUEST>(bytes.to_vec());
    if encode(SessionId(7), RequestId(9), &raw, &mut frame).is_err() {
        assert!(bytes.len() > MAX_BODY);
        return;
    }
    let found = decode::<M>(&frame, frame.len());
    assert_eq!(found.len(), 1, "a frame that is right is received");
    if let Some(Some(message)) = found.into_iter().next() {
        assert!(message.data().is_none_or(|data| data.len() <= MAX_DATA));
        again(message);
    }
}

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
    const DIRECTION: Direction = if TO_GUEST {
        Direction::ToGuest
    } else {
        Direction::ToHost
    };

    fn data(&self) -> Option<&[u8]> {
        None
    }
}
