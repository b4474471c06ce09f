//! Shared parts of the tests: a world of their own, its commands, and guests that end with the
//! test.

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::{fs::OpenOptionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use brood_standin::World;
use nix::{
    libc,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again until `look` finds something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "waited too long for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Its exit code; the negative signal number when a signal ended it.
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    fn of(output: &Output) -> Self {
        let status = output.status;
        Self {
            code: status
                .code()
                .unwrap_or_else(|| -status.signal().unwrap_or_default()),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Its standard output, if it went well and without a word on standard error.
    pub(crate) fn good(self) -> String {
        assert!(self.code == 0 && self.err.is_empty(), "{self:?}");
        self.out
    }

    /// It failed with this code and exactly these words.
    pub(crate) fn refused(&self, code: i32, words: &str) {
        let err = self.err.replace("\r\n", "\n");
        assert_eq!((self.code, err.as_str()), (code, words), "{self:?}");
    }

    /// It failed with this code, and these words are somewhere in what it said.
    pub(crate) fn refused_with(&self, code: i32, words: &str) {
        let err = self.err.replace("\r\n", "\n");
        assert!(
            self.code == code && err.contains(words),
            "not {code}, {words:?}: {self:?}"
        );
    }
}

/// A world for one test.
pub(crate) struct Lab {
    dir: TempDir,
    pub(crate) world: World,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        let binary = Path::new(env!("CARGO_BIN_EXE_standin"));
        let world = World::create(&dir.path().join("world"), binary).expect("a world");
        fs::write(dir.path().join("rom"), vec![0xf4; 8192]).expect("a boot ROM");
        Self { dir, world }
    }

    /// A path outside of the world.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    pub(crate) fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = self.world.command(name);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, name: &str, arguments: &[&str]) -> Ran {
        Ran::of(&self.command(name, arguments).output().expect("a command"))
    }

    /// Runs a command with a fault.
    pub(crate) fn run_failing(&self, fault: &str, name: &str, arguments: &[&str]) -> Ran {
        let mut command = self.command(name, arguments);
        Ran::of(
            &command
                .env("BROOD_STANDIN_FAIL", fault)
                .output()
                .expect("a command"),
        )
    }

    /// A configuration file for a guest with a console and these further lines.
    pub(crate) fn config(&self, name: &str, lines: &[&str]) -> String {
        let mut text = format!(
            "# {name}\n\nacpi_tables=true\nmemory.size=1M\nbootrom={}\n\
             lpc.com1.path=/dev/nmdm-{name}-A\n\
             pci.0.0.0.device=hostbridge\npci.0.31.0.device=lpc\n",
            self.text("rom")
        );
        for line in lines {
            let _ = writeln!(text, "{line}");
        }
        let path = self.text(&format!("{name}.conf"));
        fs::write(&path, text).expect("a configuration");
        path
    }

    /// Starts bhyve and does not wait for it.
    pub(crate) fn start(&self, name: &str, arguments: &[&str]) -> Guest {
        self.start_failing(None, name, arguments)
    }

    pub(crate) fn start_failing(
        &self,
        fault: Option<&str>,
        name: &str,
        arguments: &[&str],
    ) -> Guest {
        let mut command = self.command("bhyve", arguments);
        command
            .arg(name)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.envs(fault.map(|fault| ("BROOD_STANDIN_FAIL", fault)));
        Guest {
            child: Some(command.spawn().expect("bhyve")),
            link: self.world.path(&format!("dev/nmdm-{name}-B")),
            console: None,
        }
    }

    /// Boots a guest and waits until it is ready.
    pub(crate) fn boot(&self, name: &str) -> Guest {
        let config = self.config(name, &[]);
        let mut guest = self.start(name, &["-k", &config]);
        guest.ready();
        guest
    }

    /// A checkpoint of a guest that was booted, asked once, and suspended. Its devices are a host
    /// bridge and an LPC bridge.
    pub(crate) fn checkpoint(&self) -> String {
        let mut guest = self.boot("base");
        guest.ask("ping");
        let file = self.text("base.ckp");
        self.run("bhyvectl", &["--vm=base", &format!("--suspend={file}")])
            .good();
        assert_eq!(guest.end().code, 0);
        self.run("bhyvectl", &["--vm=base", "--destroy"]).good();
        file
    }

    /// Starts a restore of the checkpoint.
    pub(crate) fn restore(&self, name: &str, checkpoint: &str, lines: &[&str]) -> Guest {
        let config = self.config(name, lines);
        self.start(name, &["-k", &config, "-r", checkpoint, "-H", "-P"])
    }

    /// A restore that ends by itself.
    pub(crate) fn restore_refused(&self, name: &str, checkpoint: &str, lines: &[&str]) -> Ran {
        self.restore(name, checkpoint, lines).end()
    }

    pub(crate) fn vm_exists(&self, name: &str) -> bool {
        self.world.path("dev/vmm").join(name).exists()
    }
}

/// A bhyve process with a guest; killed with the test.
pub(crate) struct Guest {
    child: Option<Child>,
    link: PathBuf,
    console: Option<File>,
}

impl Guest {
    pub(crate) fn pid(&self) -> Pid {
        let id = self.child.as_ref().expect("it runs").id();
        Pid::from_raw(i32::try_from(id).expect("a process id"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("a signal");
    }

    /// Reads a line from its console, as it comes.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        until("a line from the console", || {
            if self.console.is_none() {
                let mut options = OpenOptions::new();
                options.read(true).write(true);
                options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
                self.console = options.open(&self.link).ok();
            }
            let mut byte = [0];
            while let Some(console) = &mut self.console {
                match console.read(&mut byte) {
                    Ok(1) if byte == *b"\n" => return Some(()),
                    Ok(1) => line.push(byte[0]),
                    Ok(_) => return None,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                    Err(e) => panic!("cannot read {}: {e}", self.link.display()),
                }
            }
            None
        });
        String::from_utf8(line).expect("text")
    }

    /// Waits until it runs. What it says then.
    pub(crate) fn ready(&mut self) -> String {
        let line = self.line();
        assert!(line.starts_with("ready "), "{line}");
        line
    }

    pub(crate) fn tell(&mut self, line: &str) {
        let console = self.console.as_mut().expect("its console is open");
        console
            .write_all(format!("{line}\n").as_bytes())
            .expect("a line");
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.line()
    }

    /// Whether its process has ended.
    pub(crate) fn is_gone(&mut self) -> bool {
        let child = self.child.as_mut().expect("it has not been waited for");
        child.try_wait().expect("its state").is_some()
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ran {
        let child = self.child.take().expect("it ends once");
        Ran::of(&child.wait_with_output().expect("an end"))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The value of a field such as `nonce=...`.
pub(crate) fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let found = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("no {name} in {line:?}"))
}
