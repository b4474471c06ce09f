//! A database that is written all the time, by a program that knows what must be in it.

use std::{
    error::Error,
    fs::{self, File},
    io,
    path::Path,
    thread,
    time::Duration,
};

use rusqlite::{Connection, Transaction, params};

/// Rows that are written one after the other, and then again from the first.
const ROWS: u64 = 256;
/// How many commits pass between two looks through another connection.
const LOOK_EVERY: u64 = 64;
/// Between two commits: the guest's processor is not for this alone.
const PAUSE: Duration = Duration::from_millis(2);

/// Who asks the program that writes for a look at the disk.
const REQUEST: &str = "look";
/// Who was answered, and how many commits there were.
const ANSWER: &str = "looked";

/// What the database must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    commits: u64,
    /// Of each row that was written, the sum of its content.
    sums: Vec<u64>,
}

fn open(folder: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(folder.join("db"))?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    Ok(connection)
}

/// Writes until the database is not what it must be; then says so in the file `wrong`.
pub(crate) fn write(folder: &str) -> Result<(), Box<dyn Error>> {
    let wrong = write_on(Path::new(folder)).err().map(|e| e.to_string());
    let wrong = wrong.unwrap_or_else(|| "it ended".to_owned());
    fs::write(Path::new(folder).join("wrong"), &wrong)?;
    Err(wrong.into())
}

fn write_on(folder: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    let mut connection = open(folder)?;
    connection.execute_batch(
        "CREATE TABLE row (id INTEGER PRIMARY KEY, content BLOB, sum INTEGER);
         CREATE TABLE state (commits INTEGER, total INTEGER);
         INSERT INTO state VALUES (0, 0);",
    )?;
    let mut known = Known {
        commits: 0,
        sums: Vec::new(),
    };
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    loop {
        let transaction = connection.transaction()?;
        write_row(&transaction, &mut known, &mut random)?;
        transaction.commit()?;
        if known.commits.is_multiple_of(LOOK_EVERY) {
            let found = read(&open(folder)?)?;
            if found != known {
                return Err(different(&known, &found));
            }
        }
        if let Some(who) = taken(&folder.join(REQUEST))? {
            look_at_disk(folder, &known)?;
            put(&folder.join(ANSWER), &format!("{who} {}", known.commits))?;
        }
        thread::sleep(PAUSE);
    }
}

fn different(known: &Known, found: &Known) -> Box<dyn Error> {
    format!("in memory {known:?}, in the database {found:?}").into()
}

/// Compares what the program knows with what the disk has, of which the kernel has nothing in memory.
fn look_at_disk(folder: &Path, known: &Known) -> Result<(), Box<dyn Error>> {
    for file in ["db", "db-wal"] {
        // Pages that wait to be written stay.
        File::open(folder.join(file))?.sync_all()?;
    }
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let before = read_from_disk()?;
    let found = read(&open(folder)?)?;
    if found != *known {
        return Err(different(known, &found));
    }
    if read_from_disk()? == before {
        return Err("nothing of the database was read from the disk".into());
    }
    Ok(())
}

/// Bytes that this process had the kernel read from disks.
fn read_from_disk() -> Result<u64, Box<dyn Error>> {
    let io = fs::read_to_string("/proc/self/io")?;
    let bytes = io
        .lines()
        .find_map(|line| line.strip_prefix("read_bytes: "));
    Ok(bytes.ok_or("/proc/self/io has no read_bytes")?.parse()?)
}

/// The content of a file, which is there once.
fn taken(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(content) => fs::remove_file(path).map(|()| Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes a file that is there as a whole.
fn put(path: &Path, content: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    fs::write(&beside, content)?;
    fs::rename(beside, path)
}

/// Has the program that writes look at the disk, and prints how many commits it knows of.
pub(crate) fn look(folder: &str) -> Result<(), Box<dyn Error>> {
    let folder = Path::new(folder);
    fs::create_dir_all(folder)?;
    let who = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let who = who.trim();
    put(&folder.join(REQUEST), who)?;
    loop {
        if let Ok(wrong) = fs::read_to_string(folder.join("wrong")) {
            return Err(format!("the writer said: {wrong}").into());
        }
        let answer = fs::read_to_string(folder.join(ANSWER)).unwrap_or_default();
        if let Some((asked, commits)) = answer.split_once(' ')
            && asked == who
        {
            println!("{commits}");
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
}

fn write_row(
    transaction: &Transaction<'_>,
    known: &mut Known,
    random: &mut u64,
) -> Result<(), Box<dyn Error>> {
    let mut content = vec![0_u8; 100 + usize::try_from(next(random) % 2000)?];
    for byte in &mut content {
        *byte = next(random).to_le_bytes()[3];
    }
    let id = known.commits % ROWS;
    let sum = sum(&content);
    transaction.execute(
        "INSERT OR REPLACE INTO row VALUES (?1, ?2, ?3)",
        params![id.cast_signed(), content, sum.cast_signed()],
    )?;
    let at = usize::try_from(id)?;
    if at < known.sums.len() {
        known.sums[at] = sum;
    } else {
        known.sums.push(sum);
    }
    known.commits += 1;
    transaction.execute(
        "UPDATE state SET commits = ?1, total = ?2",
        params![
            known.commits.cast_signed(),
            total(&known.sums).cast_signed()
        ],
    )?;
    Ok(())
}

/// Prints how many commits there are, when everything in the database fits together.
pub(crate) fn check(folder: &str) -> Result<(), Box<dyn Error>> {
    if let Ok(wrong) = fs::read_to_string(Path::new(folder).join("wrong")) {
        return Err(format!("the writer said: {wrong}").into());
    }
    let known = read(&open(Path::new(folder))?)?;
    println!("{}", known.commits);
    Ok(())
}

/// Reads all of it, in one transaction.
fn read(connection: &Connection) -> Result<Known, Box<dyn Error>> {
    let connection = connection.unchecked_transaction()?;
    let (commits, all): (i64, i64) =
        connection.query_row("SELECT commits, total FROM state", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    let mut rows = connection.prepare("SELECT id, content, sum FROM row ORDER BY id")?;
    let mut rows = rows.query([])?;
    let mut sums = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, content): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
        let noted: i64 = row.get(2)?;
        if usize::try_from(id)? != sums.len() || noted.cast_unsigned() != sum(&content) {
            return Err(format!("row {id} is not what was written").into());
        }
        sums.push(noted.cast_unsigned());
    }
    if all.cast_unsigned() != total(&sums) {
        return Err("the rows are not those of the last commit".into());
    }
    let whole: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if whole != "ok" {
        return Err(whole.into());
    }
    Ok(Known {
        commits: commits.cast_unsigned(),
        sums,
    })
}

/// xorshift64.
fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

/// FNV-1a.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn total(sums: &[u64]) -> u64 {
    sums.iter()
        .fold(0, |total: u64, sum| total.rotate_left(1).wrapping_add(*sum))
}
