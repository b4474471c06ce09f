//! Lists of pages, a line each, and the chain of deltas that they are.
#![no_main]

use brood_core::checkpoint::PageList;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let mut lists = Vec::new();
    for line in text.lines() {
        if let Ok(list) = line.parse::<PageList>() {
            assert_eq!(list.to_string(), line);
            lists.push(list);
        }
    }
    brood_core::fuzzing::deltas(&lists);
});
