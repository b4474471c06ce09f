//! Directory entries, also of a directory that another process removes while it is read.

use std::{
    fs::{self, DirEntry, ReadDir},
    io,
    path::Path,
};

/// Entries of a directory; none when there is no such directory.
///
/// # Errors
/// When it cannot be read.
pub fn entries(directory: &Path) -> io::Result<Vec<DirEntry>> {
    match fs::read_dir(directory) {
        Ok(open) => read(open),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn read(open: ReadDir) -> io::Result<Vec<DirEntry>> {
    open.collect::<io::Result<_>>()
        .or_else(|error| match error.kind() {
            // getdents(2) of a directory that was removed after it was opened.
            io::ErrorKind::NotFound => Ok(Vec::new()),
            _ => Err(error),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_gone_has_no_entries() {
        let dir = tempfile::tempdir().unwrap();
        let removed = dir.path().join("removed");
        fs::create_dir(&removed).unwrap();
        let open = fs::read_dir(&removed).unwrap();
        fs::remove_dir(&removed).unwrap();
        assert_eq!(read(open).unwrap().len(), 0);
        assert_eq!(entries(&removed).unwrap().len(), 0);
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(entries(dir.path()).unwrap().len(), 1);
        assert!(entries(&dir.path().join("file")).is_err());
    }
}
