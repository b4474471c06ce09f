//! What decoding costs in memory, whatever a frame says about itself.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use brood_agent_protocol::{Decoder, ToGuest, ToHost, limits::MAX_BODY};

/// The system's allocator, which notes the largest request.
struct Largest(AtomicUsize);

// SAFETY: all is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Largest = Largest(AtomicUsize::new(0));

/// A frame around these bytes, stuffed the simplest way: all of them are other than 0, and so are
/// those of head and checksum.
fn frame(direction: u8, body: &[u8]) -> Vec<u8> {
    let mut request = 0x0101_0101u32;
    let plain = loop {
        let mut plain = vec![direction, 1, 1, 1, 1, 1, 1, 1, 1];
        plain.extend_from_slice(&request.to_le_bytes());
        plain.extend_from_slice(body);
        let checksum = crc32fast::hash(&plain).to_le_bytes();
        plain.extend_from_slice(&checksum);
        if !plain.contains(&0) {
            break plain;
        }
        request += 1;
    };
    let mut out = vec![0];
    for run in plain.chunks(254) {
        out.push(u8::try_from(run.len() + 1).unwrap());
        out.extend_from_slice(run);
    }
    out.push(0);
    out
}

/// One test, as the allocator is the whole program's.
#[test]
fn a_length_that_lies_gets_no_memory() {
    // The longest length that the encoding has, in place of each length of a message, and of what a
    // message begins with.
    let length = [0xff, 0xff, 0xff, 0xff, 0x0f];
    let mut bodies = Vec::new();
    for first in 1..12u8 {
        for second in 1..26u8 {
            for third in 1..4u8 {
                for head in [&[first][..], &[first, second], &[first, second, third]] {
                    let mut body = head.to_vec();
                    for _ in 0..40 {
                        body.extend_from_slice(&length);
                    }
                    bodies.push(body);
                }
            }
        }
    }
    let mut streams: Vec<_> = bodies.iter().map(|body| frame(b'h', body)).collect();
    streams.extend(bodies.iter().map(|body| frame(b'g', body)));
    // And bytes without end.
    streams.push(vec![0x55; 64 * MAX_BODY]);

    let (mut down, mut up) = (Decoder::<ToGuest>::default(), Decoder::<ToHost>::default());
    let mut frames = 0;
    ALLOCATOR.0.store(0, Ordering::Relaxed);
    for stream in &streams {
        for piece in stream.chunks(4096) {
            let mut rest = piece;
            while down.next(&mut rest).is_some() {
                frames += 1;
            }
            let mut rest = piece;
            while up.next(&mut rest).is_some() {
                frames += 1;
            }
        }
    }
    let largest = ALLOCATOR.0.load(Ordering::Relaxed);
    assert_eq!(frames, streams.len() - 1, "each frame is seen by its end");
    assert!(largest <= 3 * MAX_BODY, "{largest} bytes at once");
}
