//! Images in a local OCI layout (image specification 1.0 and 1.1 of the Open Container Initiative):
//! `index.json`, and blobs that are named by their digests.
//!
//! Whoever made the layout is not trusted: each blob is compared with its digest before it is read,
//! sizes are limited, and a layer's paths lead nowhere but into the guest's file system.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{
    Error, Images,
    base::Ingredients,
    description::{Image, Part, Process},
    hex,
    layer::{Store, apply},
    root::Contents,
    tree::Tree,
};
use brood_core::{
    checkpoint::{sha256_file, unwatched},
    units::Bytes,
};

/// Longest document.
const DOCUMENT_MAX: u64 = 4 << 20;
/// Most layers.
const LAYERS_MAX: usize = 256;
/// Most indexes in one another.
const INDEXES_MAX: usize = 4;
/// What an environment or a list of arguments may have of entries.
const WORDS_MAX: usize = 1024;

/// A reference to a blob.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

/// What an image runs on.
#[derive(Clone, Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// `index.json`, and an index in a blob.
#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Reference>,
}

/// What an image has.
#[derive(Debug, Deserialize)]
struct Manifest {
    config: Reference,
    layers: Vec<Reference>,
}

/// An image's configuration.
#[derive(Debug, Deserialize)]
struct Config {
    architecture: String,
    os: String,
    #[serde(default)]
    config: Option<Execution>,
}

/// How an image's program is run.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Execution {
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    working_dir: Option<String>,
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    cmd: Option<Vec<String>>,
}

/// A layout.
#[derive(Debug)]
pub(crate) struct Layout<'a> {
    /// Its folder.
    pub(crate) folder: &'a Path,
    /// Most that a guest may write to its file system.
    pub(crate) size: Option<Bytes>,
}

impl Images {
    /// Builds an image of a layout. `told` learns what is being done.
    pub(crate) fn build_oci(
        &self,
        from: &Ingredients<'_>,
        layout: &Layout<'_>,
        told: &dyn Fn(&str),
    ) -> Result<Image, Error> {
        // Refused before anything is fetched.
        let manifest = layout.manifest()?;
        let process = layout.process(&manifest)?;
        self.build_root(from, told, |scratch| {
            let (_, contents) = scratch.file("contents")?;
            let mut store = Store::new(contents);
            let mut tree = Tree::default();
            let mut sources = Vec::new();
            for (number, layer) in (1..).zip(&manifest.layers) {
                told(&format!("layer {number} of {}", manifest.layers.len()));
                layout.apply(layer, &mut tree, &mut store)?;
                sources.push(Part {
                    name: format!("layer {number}"),
                    version: None,
                    sha256: layer.digest.strip_prefix("sha256:").map(str::to_owned),
                });
            }
            Ok(Contents {
                kind: "oci",
                tree,
                sources,
                process: Some(process),
                size: layout.size,
            })
        })
    }
}

impl Layout<'_> {
    fn refuse(&self, what: &str, reason: impl Into<String>) -> Error {
        Error::Archive {
            archive: self.folder.join(what).display().to_string(),
            reason: reason.into(),
        }
    }

    /// The manifest for x86-64 Linux.
    fn manifest(&self) -> Result<Manifest, Error> {
        let marker = self.folder.join("oci-layout");
        if !marker.is_file() {
            return Err(self.refuse("", "it has no file oci-layout, so it is no OCI layout"));
        }
        let path = self.folder.join("index.json");
        let text = File::open(&path).and_then(|file| document(&file));
        let text = text.map_err(Error::io("read", &path))?;
        let mut index: Index = self.parse("index.json", &text)?;
        for _ in 0..INDEXES_MAX {
            let fits = |reference: &Reference| match &reference.platform {
                Some(platform) => platform.os == "linux" && platform.architecture == "amd64",
                None => true,
            };
            let mut fitting = index.manifests.iter().filter(|reference| fits(reference));
            let found = fitting
                .next()
                .ok_or_else(|| self.refuse("index.json", "it has no image for linux/amd64"))?;
            // One layout may have several images, for one platform as well.
            if let Some(other) = fitting.next() {
                return Err(self.refuse(
                    "index.json",
                    format!(
                        "it has more than one image for linux/amd64: {} and {}",
                        found.digest, other.digest
                    ),
                ));
            }
            let text = self.small_blob(found)?;
            if found.media_type.contains("index") || found.media_type.contains("manifest.list") {
                index = self.parse(&found.digest, &text)?;
                continue;
            }
            let manifest: Manifest = self.parse(&found.digest, &text)?;
            if manifest.layers.len() > LAYERS_MAX {
                return Err(self.refuse(
                    &found.digest,
                    format!("it has more than {LAYERS_MAX} layers"),
                ));
            }
            return Ok(manifest);
        }
        Err(self.refuse("index.json", "its indexes lead to no image"))
    }

    /// What the image's programs expect.
    fn process(&self, manifest: &Manifest) -> Result<Process, Error> {
        let text = self.small_blob(&manifest.config)?;
        let config: Config = self.parse(&manifest.config.digest, &text)?;
        if (&config.os[..], &config.architecture[..]) != ("linux", "amd64") {
            let of = format!("it is for {}/{}", config.os, config.architecture);
            return Err(self.refuse(&manifest.config.digest, of));
        }
        let execution = config.config.unwrap_or_default();
        let word = |word: Option<String>| word.filter(|word| !word.is_empty());
        let process = Process {
            env: execution.env.unwrap_or_default(),
            cwd: word(execution.working_dir),
            user: word(execution.user),
            entrypoint: execution.entrypoint.unwrap_or_default(),
            command: execution.cmd.unwrap_or_default(),
        };
        let lists = [&process.env, &process.entrypoint, &process.command];
        if lists.iter().any(|list| list.len() > WORDS_MAX) {
            let many = format!("a list in it has more than {WORDS_MAX} words");
            return Err(self.refuse(&manifest.config.digest, many));
        }
        if !process.is_sound() {
            let bad = "a word of its environment or of its program is none that a program can have";
            return Err(self.refuse(&manifest.config.digest, bad));
        }
        Ok(process)
    }

    fn parse<'t, T: Deserialize<'t>>(&self, what: &str, text: &'t [u8]) -> Result<T, Error> {
        serde_json::from_slice(text).map_err(|e| self.refuse(what, e.to_string()))
    }

    /// A blob that is what its name says.
    fn blob(&self, reference: &Reference) -> Result<(PathBuf, File), Error> {
        let digest = reference.digest.strip_prefix("sha256:");
        let digest = digest.filter(|digest| {
            digest.len() == 64
                && digest
                    .bytes()
                    .all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
        });
        let digest = digest.ok_or_else(|| {
            self.refuse("", format!("{:?} is no SHA-256 digest", reference.digest))
        })?;
        let path = self.folder.join("blobs/sha256").join(digest);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let facts = file.metadata().map_err(Error::io("look at", &path))?;
        let name = format!("blobs/sha256/{digest}");
        if !facts.is_file() || facts.len() != reference.size {
            let sizes = format!("it has {} bytes, not {}", facts.len(), reference.size);
            return Err(self.refuse(&name, sizes));
        }
        let found = sha256_file(&file, &unwatched).map_err(Error::io("read", &path))?;
        if found != digest {
            return Err(self.refuse(&name, "its content does not have this digest"));
        }
        Ok((path, file))
    }

    /// A blob that is a document.
    fn small_blob(&self, reference: &Reference) -> Result<Vec<u8>, Error> {
        let (path, file) = self.blob(reference)?;
        let text = document(&file).map_err(Error::io("read", &path))?;
        // It may have been changed since it was measured.
        if format!("sha256:{}", hex(&Sha256::digest(&text))) == reference.digest {
            Ok(text)
        } else {
            Err(self.refuse(&reference.digest, "its content does not have this digest"))
        }
    }

    /// Puts a layer into the tree.
    fn apply(&self, layer: &Reference, tree: &mut Tree, store: &mut Store) -> Result<(), Error> {
        let (path, file) = self.blob(layer)?;
        let file = BufReader::new(file);
        let kind = layer.media_type.rsplit(['+', '.']).next().unwrap_or("");
        let archive: Box<dyn Read> = match kind {
            "gzip" => Box::new(MultiGzDecoder::new(file)),
            "zstd" => {
                let decoder = zstd::Decoder::with_buffer(file);
                Box::new(decoder.map_err(Error::io("read", &path))?)
            }
            "tar" => Box::new(file),
            _ => {
                let kind = format!("{:?} is no layer that brood can read", layer.media_type);
                return Err(self.refuse(&layer.digest, kind));
            }
        };
        apply(tree, store, archive).map_err(|e| Error::Archive {
            archive: path.display().to_string(),
            reason: e.to_string(),
        })
    }
}

/// A whole file that may not be long.
fn document(file: &File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = file.take(DOCUMENT_MAX + 1).read_to_end(&mut text)?;
    if read as u64 > DOCUMENT_MAX {
        return Err(io::Error::other(format!(
            "it has more than {} MiB",
            DOCUMENT_MAX >> 20
        )));
    }
    Ok(text)
}
