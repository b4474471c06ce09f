//! The broker of a guest's channel: its clients, and a hostile guest.
#![no_main]

use brood_core::fuzzing::{BrokerStep, broker};
use libfuzzer_sys::arbitrary::{Result, Unstructured};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut left = Unstructured::new(input);
    let mut steps = vec![BrokerStep::Join];
    while !left.is_empty() && steps.len() < 200 {
        match step(&mut left) {
            Ok(Some(step)) => steps.push(step),
            Ok(None) => {}
            Err(_) => break,
        }
    }
    broker(steps);
});

fn step<'a>(from: &mut Unstructured<'a>) -> Result<Option<BrokerStep<'a>>> {
    let kind = from.arbitrary::<u8>()?;
    let client = kind >> 4;
    Ok(match kind % 8 {
        0 => Some(BrokerStep::Join),
        1 => Some(BrokerStep::Leave(client)),
        2 => Some(BrokerStep::Write),
        3 => Some(BrokerStep::Client(client, bytes(from)?)),
        4 => Some(BrokerStep::Guest(bytes(from)?)),
        5 => {
            let request = from.arbitrary::<u8>()?.into();
            let message = postcard::from_bytes(bytes(from)?).ok();
            message.map(|message| BrokerStep::ClientSays(client, request, message))
        }
        _ => {
            let request = from.arbitrary::<u8>()?.into();
            let message = postcard::from_bytes(bytes(from)?).ok();
            message.map(|message| BrokerStep::GuestSays(client != 0, request, message))
        }
    })
}

fn bytes<'a>(from: &mut Unstructured<'a>) -> Result<&'a [u8]> {
    let length = usize::from(from.arbitrary::<u8>()?).min(from.len());
    from.bytes(length)
}
