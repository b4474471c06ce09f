//! Signatures of bundles: who vouches for one. `X.ckp.sig` lies beside the bundle, and is no part of
//! it: a line for each signer, `ed25519 PUBLIC_KEY SIGNATURE`, both in hexadecimal digits.
//!
//! What is signed is the digest of the manifest, which holds the digests of all other files, and of
//! a delta's parents the digest of their memory. Keys are files as OpenSSL writes them: PKCS#8 for
//! the secret key, SubjectPublicKeyInfo for the public one, in PEM.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use ed25519_dalek::{
    Signature, Signer, SigningKey, VerifyingKey,
    pkcs8::{DecodePrivateKey, DecodePublicKey},
};

use super::{
    error::Error,
    folder::Folder,
    hash::hex,
    open::{Checkpoint, read_whole},
    path::BundlePath,
};
use crate::{other_writer::OtherWriter, owner_only, units::Bytes};

/// Before the digest, so that no signature made for something else is one of a checkpoint.
const CONTEXT: &str = "brood checkpoint signature 1\n";

/// Longest file of signatures that is read: some hundred signers.
const SIGNATURES_MAX: Bytes = Bytes(64 << 10);

/// Longest file of a key that is read.
const KEY_MAX: Bytes = Bytes(64 << 10);

/// One line of a file of signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    key: VerifyingKey,
    signature: Signature,
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (Some("ed25519"), Some(key), Some(signature), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return None;
        };
        Some(Self {
            key: VerifyingKey::from_bytes(&bytes(key)?).ok()?,
            signature: Signature::from_bytes(&bytes(signature)?),
        })
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (key, signature) = (hex(self.key.as_bytes()), self.signature.to_bytes());
        write!(f, "ed25519 {key} {}", hex(&signature))
    }
}

/// Bytes from hexadecimal digits.
fn bytes<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if digits.len() != 2 * N || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

fn message(checkpoint: &Checkpoint) -> Vec<u8> {
    format!("{CONTEXT}{}", checkpoint.manifest_sha256()).into_bytes()
}

fn file_name(path: &BundlePath) -> String {
    format!("{}.ckp.sig", path.name())
}

fn open_folder(path: &BundlePath) -> Result<Folder, Error> {
    Folder::open(path.dir()).map_err(|cause| Error::io("open the folder", path.dir(), cause))
}

/// The lines of a bundle's signatures; none when it has no such file.
fn lines(folder: &Folder, path: &BundlePath) -> Result<Vec<String>, Error> {
    let name = file_name(path);
    let Some(file) = folder.open_file(&name)? else {
        return Ok(Vec::new());
    };
    let text = read_whole(&file, &folder.file(&name), SIGNATURES_MAX)?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().map(str::to_owned).collect())
}

/// Signs a bundle with the secret key in a file. Replaces an earlier signature by the same key;
/// leaves those of others. Returns the file of the signatures.
///
/// # Errors
/// [`Error::Key`] when the file holds no key, or others may read it; when the signature cannot be
/// written.
pub fn sign(checkpoint: &Checkpoint, key_file: &Path) -> Result<PathBuf, Error> {
    let key = secret_key(key_file)?;
    let line = Line {
        key: key.verifying_key(),
        signature: key.sign(&message(checkpoint)),
    };
    let path = checkpoint.path();
    let folder = open_folder(path)?;
    let mut text = String::new();
    for known in lines(&folder, path)? {
        if Line::parse(&known).is_some_and(|known| known.key != line.key) {
            text.push_str(&known);
            text.push('\n');
        }
    }
    text.push_str(&format!("{line}\n"));
    let (name, unfinished) = (file_name(path), format!(".{}.new", file_name(path)));
    folder.remove(&unfinished)?;
    let file = folder.file(&unfinished);
    let mut new = folder
        .create_file(&unfinished)?
        .ok_or_else(|| Error::Exists {
            bundle: path.clone(),
            file: file.clone(),
        })?;
    new.write_all(text.as_bytes())
        .and_then(|()| owner_only::seal(&new))
        .and_then(|()| new.sync_all())
        .map_err(|cause| Error::io("write", &file, cause))?;
    folder.replace(&unfinished, &name)?;
    folder.sync()?;
    Ok(folder.file(&name))
}

/// Removes a bundle's signatures.
pub(super) fn remove(folder: &Folder, path: &BundlePath) -> Result<(), Error> {
    folder.remove(&file_name(path))
}

/// The file of the public key that a bundle is signed with, among those in the folder `signers`.
///
/// # Errors
/// [`Error::NotSigned`] when it is signed with none of them; [`Error::Key`] when others may change
/// the folder or a key, or a file `*.pem` in it holds none.
pub fn signer_of(checkpoint: &Checkpoint, signers: &Path) -> Result<PathBuf, Error> {
    let keys = public_keys(signers)?;
    let path = checkpoint.path();
    let lines = lines(&open_folder(path)?, path)?;
    let not_signed = |reason: String| Error::NotSigned {
        bundle: path.clone(),
        signers: signers.to_owned(),
        reason,
    };
    if lines.is_empty() {
        return Err(not_signed("it has no signature".to_owned()));
    }
    let message = message(checkpoint);
    let mut reason = "it is signed with other keys only".to_owned();
    for line in lines.iter().filter_map(|line| Line::parse(line)) {
        for (file, key) in keys.iter().filter(|(_, key)| *key == line.key) {
            if key.verify_strict(&message, &line.signature).is_ok() {
                return Ok(file.clone());
            }
            reason = format!("it was changed since it was signed with {}", file.display());
        }
    }
    Err(not_signed(reason))
}

fn no_key(file: &Path, reason: impl Into<String>) -> Error {
    Error::Key {
        file: file.to_owned(),
        reason: reason.into(),
    }
}

/// A key's text, and what the file is.
fn read_key(file: &Path) -> Result<(String, fs::Metadata), Error> {
    let open = File::open(file).map_err(|cause| Error::io("open", file, cause))?;
    let facts = open
        .metadata()
        .map_err(|cause| Error::io("examine", file, cause))?;
    let text = read_whole(&open, file, KEY_MAX)?;
    Ok((String::from_utf8_lossy(&text).into_owned(), facts))
}

fn secret_key(file: &Path) -> Result<SigningKey, Error> {
    let (text, facts) = read_key(file)?;
    if facts.is_file() && facts.mode() & owner_only::OTHERS != 0 {
        return Err(no_key(
            file,
            format!("others may read it; chmod 600 {}", file.display()),
        ));
    }
    SigningKey::from_pkcs8_pem(&text).map_err(|e| {
        no_key(
            file,
            format!("it is no secret ed25519 key in PKCS#8 PEM: {e}"),
        )
    })
}

/// All public keys in a folder, in the order of their files' names.
fn public_keys(signers: &Path) -> Result<Vec<(PathBuf, VerifyingKey)>, Error> {
    let read = |cause| Error::io("read the folder", signers, cause);
    let unchanged = |file: &Path, facts: &fs::Metadata| match OtherWriter::of(facts) {
        None => Ok(()),
        Some(who) => Err(no_key(file, format!("{who} may change it"))),
    };
    unchanged(signers, &fs::metadata(signers).map_err(read)?)?;
    let mut files = Vec::new();
    for entry in signers.read_dir().map_err(read)? {
        let file = entry.map_err(read)?.path();
        if file.extension().is_some_and(|end| end == "pem") {
            files.push(file);
        }
    }
    files.sort();
    let mut keys = Vec::with_capacity(files.len());
    for file in files {
        let (text, facts) = read_key(&file)?;
        unchanged(&file, &facts)?;
        let key = VerifyingKey::from_public_key_pem(&text)
            .map_err(|e| no_key(&file, format!("it is no public ed25519 key in PEM: {e}")))?;
        keys.push((file, key));
    }
    Ok(keys)
}
