//! Generator of the Rust that `vmm-sys` is built on, from FreeBSD's headers of vmm(4) and
//! vmm_vnode(4).
//!
//! It has two callers: `tools/bindings`, which keeps the committed `sys/src/generated`, and the
//! build script of `vmm-sys` with its feature `host-headers`. Both get the same items, so only the
//! content of the headers can differ.
//!
//! Besides the types and the constants, each request (`_IO`, `_IOR`, `_IOW`, `_IOWR`) becomes a
//! constant `REQUEST_*` with the C compiler's value, and its argument a member of the structure
//! `request_arguments`: `vmm-sys` checks its own table against both.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where the headers are.
#[derive(Debug)]
pub struct Headers {
    /// The compiler's search path: `/usr/include` on FreeBSD.
    pub system: Vec<PathBuf>,
    /// Root of brood's sources, for `kmod/vmm_vnode.h` and `sys/bindgen/*.h`.
    pub brood: PathBuf,
}

/// Why there are no bindings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A header is in none of the folders that were named.
    #[error("no {header} in {}", folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", "))]
    NoHeader {
        /// Path of the header below a folder.
        header: &'static str,
        /// Folders that were searched.
        folders: Vec<PathBuf>,
    },
    /// A header cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The header.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The headers do not compile, or there is no libclang.
    #[error("bindgen: {0}")]
    Bindgen(#[from] bindgen::BindgenError),
}

/// The bindings, as the text of a Rust module.
///
/// # Errors
/// If a header is missing or does not compile. bindgen itself panics if there is no libclang.
pub fn generate(headers: &Headers) -> Result<String, Error> {
    let ours = headers.brood.join("sys/bindgen");
    let kmod = headers.brood.join("kmod");
    let sources = [
        headers.find("machine/vmm_dev.h")?,
        ours.join("vmmctl.h"),
        kmod.join("vmm_vnode.h"),
    ];
    let mut requests = Vec::new();
    for source in &sources {
        requests.extend(find_requests(&read(source)?));
    }

    let mut builder = bindgen::Builder::default()
        .header_contents("requests.h", &header(&requests))
        .clang_args([
            "-target",
            "x86_64-unknown-freebsd15.0",
            "-std=gnu17",
            "-nostdinc",
        ])
        .clang_args([
            format!("-I{}", ours.display()),
            format!("-I{}", kmod.display()),
        ]);
    for folder in &headers.system {
        builder = builder.clang_args(["-isystem".to_owned(), folder.display().to_string()]);
    }
    let bindings = builder
        .allowlist_file(".*(vmm_dev|vmm_snapshot|vmmctl|vmm_vnode)\\.h")
        .allowlist_var("REQUEST_.*|VM_MAX_.*|VM_REG_.*|VM_SUSPEND_.*")
        .allowlist_type("vm_reg_name|vm_suspend_how|seg_desc|request_arguments")
        .blocklist_function(".*")
        // Reached by a pointer only.
        .blocklist_type(
            "vm_exit|vm_exit__.*|vie|vie_op|vm_inout.*|vm_task_switch|task_switch_reason",
        )
        .raw_line("#[repr(C)]\npub struct vm_exit {\n    _opaque: [u8; 0],\n}\n")
        // Bit fields that nothing here reads: the size is enough.
        .opaque_type("vm_readwrite_kernemu_device")
        .blocklist_var("_.*|IOCPARM_.*|IOC_.*")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
        .generate_comments(false)
        .use_core()
        .layout_tests(true)
        .merge_extern_blocks(true)
        .disable_header_comment()
        .generate()?;
    Ok(format!(
        "// Written by tools/bindings. Do not edit.\n\n{bindings}"
    ))
}

impl Headers {
    fn find(&self, header: &'static str) -> Result<PathBuf, Error> {
        let mut paths = self.system.iter().map(|folder| folder.join(header));
        paths
            .find(|path| path.is_file())
            .ok_or_else(|| Error::NoHeader {
                header,
                folders: self.system.clone(),
            })
    }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// A macro that is a request number.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    name: String,
    /// C type of its argument, if it has one.
    argument: Option<String>,
}

/// The macros of `header` that are request numbers.
fn find_requests(header: &str) -> Vec<Request> {
    let joined = header.replace("\\\r\n", " ").replace("\\\n", " ");
    joined.lines().filter_map(request).collect()
}

fn request(line: &str) -> Option<Request> {
    let definition = line
        .trim()
        .strip_prefix('#')?
        .trim()
        .strip_prefix("define")?;
    let (name, value) = definition.trim().split_once(char::is_whitespace)?;
    let (call, arguments) = value.trim().strip_suffix(')')?.split_once('(')?;
    let argument = match call {
        "_IO" => None,
        "_IOR" | "_IOW" | "_IOWR" => Some(arguments.rsplit_once(',')?.1.trim().to_owned()),
        _ => return None,
    };
    Some(Request {
        name: name.to_owned(),
        argument,
    })
}

/// What the C compiler is to look at.
fn header(requests: &[Request]) -> String {
    let mut constants = String::new();
    let mut members = String::new();
    for Request { name, argument } in requests {
        // Without the #undef the member's name would be expanded.
        constants +=
            &format!("static const unsigned long REQUEST_{name} = {name};\n#undef {name}\n");
        if let Some(argument) = argument {
            members += &format!("\t{argument} {name};\n");
        }
    }
    format!("#include \"vmm.h\"\n{constants}struct request_arguments {{\n{members}}};\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_found_with_their_arguments_and_nothing_else_is() {
        let header = "#define\tVM_RUN\t\t\\\n\t_IOW('v', IOCNUM_RUN, struct vm_run)\n\
             # define VM_REINIT _IO('v', 5)\n#define MAX 64\n#define VM_MEMSEG_NAME(m) (m)\n\
             #define PINS _IOR('v', \\\r\n 1, int)\n/* _IOR('v', 1, int) */\n#define GUARD\n";
        let request = |name: &str, argument: Option<&str>| Request {
            name: name.to_owned(),
            argument: argument.map(str::to_owned),
        };
        assert_eq!(
            find_requests(header),
            [
                request("VM_RUN", Some("struct vm_run")),
                request("VM_REINIT", None),
                request("PINS", Some("int")),
            ]
        );
    }

    #[test]
    fn a_missing_header_is_named_with_the_folders_that_were_searched() {
        let nowhere = tempfile::tempdir().unwrap();
        let headers = Headers {
            system: vec![nowhere.path().to_owned()],
            brood: Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."),
        };
        let error = generate(&headers).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("no machine/vmm_dev.h in {}", nowhere.path().display())
        );
    }
}
