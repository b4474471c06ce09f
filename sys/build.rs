//! Build script: with the feature `host-headers` it takes the ABI from the headers of the host.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "host-headers")]
    host_headers::generate();
}

#[cfg(feature = "host-headers")]
mod host_headers {
    use std::{
        env, fs,
        path::{Path, PathBuf},
    };

    use vmm_bindgen::Headers;

    /// Folders to search instead of `/usr/include`, separated by `:`, as when cross-building.
    const INCLUDE: &str = "VMM_SYS_INCLUDE";

    pub(crate) fn generate() {
        println!("cargo::rerun-if-env-changed={INCLUDE}");
        let system: Vec<PathBuf> = match env::var_os(INCLUDE) {
            Some(folders) => env::split_paths(&folders).collect(),
            None if cfg!(target_os = "freebsd") => vec!["/usr/include".into()],
            None => panic!(
                "host-headers: this host is not FreeBSD: build without that feature, or name \
                 folders of FreeBSD's headers in {INCLUDE}, separated by `:`"
            ),
        };
        let sys = Path::new(env!("CARGO_MANIFEST_DIR"));
        let brood = sys
            .parent()
            .expect("sys/ is in the root of the sources")
            .to_owned();
        for folder in system
            .iter()
            .cloned()
            .chain([brood.join("kmod"), sys.join("bindgen")])
        {
            println!("cargo::rerun-if-changed={}", folder.display());
        }
        let bindings = vmm_bindgen::generate(&Headers { system, brood })
            .unwrap_or_else(|error| panic!("host-headers: {error}"));
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        fs::write(out.join("host.rs"), bindings).expect("cannot write into OUT_DIR");
    }
}
