//! Bindings on standard output; `tools/bindings` finds the headers and compares.

use std::{env, path::PathBuf, process::ExitCode};

use vmm_bindgen::{Headers, generate};

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1).map(PathBuf::from);
    let Some(brood) = arguments.next() else {
        eprintln!("usage: vmm-bindgen BROOD-SOURCES INCLUDE-FOLDER...");
        return ExitCode::from(2);
    };
    match generate(&Headers {
        brood,
        system: arguments.collect(),
    }) {
        Ok(bindings) => {
            print!("{bindings}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("vmm-bindgen: {error}");
            ExitCode::FAILURE
        }
    }
}
