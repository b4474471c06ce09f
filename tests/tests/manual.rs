//! Manual pages and completions, as the binary makes them: each command has a page, and the tools
//! that read them find no fault.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

use brood_tests::{Home, brood, skip};

/// Runs a tool, if this machine has it: what it printed, and whether it was content.
fn tool(command: &mut Command) -> Option<(bool, String)> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(out) => {
            let said = [out.stdout, out.stderr].concat();
            Some((
                out.status.success(),
                String::from_utf8_lossy(&said).into_owned(),
            ))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            skip(&format!("no {name}"));
            None
        }
        Err(e) => panic!("{name}: {e}"),
    }
}

/// All commands that `--help` names, as words after `brood`.
fn commands(home: &Home, above: &[&str]) -> Vec<Vec<String>> {
    let help = home.brood(&[above, &["--help"]].concat()).ok().stdout;
    let mut found = vec![above.iter().map(ToString::to_string).collect()];
    let listed = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help");
    for name in listed {
        found.extend(commands(home, &[above, &[name]].concat()));
    }
    found
}

/// The pages, in a folder of the home.
fn pages(home: &Home) -> Vec<PathBuf> {
    let dir = home.path().join("man");
    let out = dir.to_str().expect("plain letters");
    let _ = home
        .brood(&["man", "--out", out, "--date", "2026-01-31"])
        .ok();
    let mut pages = Vec::new();
    for section in ["1", "5"] {
        for entry in fs::read_dir(dir.join(format!("man{section}"))).unwrap() {
            let page = entry.unwrap().path();
            assert_eq!(page.extension().unwrap(), section, "{page:?}");
            pages.push(page);
        }
    }
    pages.sort();
    pages
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn every_command_has_a_page_and_every_page_a_command() {
    let home = Home::bare();
    let mut expected: BTreeSet<String> = commands(&home, &[])
        .iter()
        .map(|words| {
            let name = [&["brood".to_owned()], &**words].concat().join("-");
            format!("{name}.1")
        })
        .collect();
    for known in ["brood.1", "brood-restore.1", "brood-pool-claim.1"] {
        assert!(expected.contains(known), "{expected:?}");
    }
    expected.insert("brood.toml.5".to_owned());
    let written: BTreeSet<String> = pages(&home).iter().map(|page| file_name(page)).collect();
    assert_eq!(written, expected);
}

#[test]
fn pages_have_examples_and_refer_to_pages_that_are_there() {
    let home = Home::bare();
    let pages = pages(&home);
    let names: Vec<String> = pages.iter().map(|page| file_name(page)).collect();
    for (page, name) in pages.iter().zip(&names) {
        let text = fs::read_to_string(page).unwrap();
        assert!(
            text.contains("2026\\-01\\-31") || text.contains("2026-01-31"),
            "{name}: no date"
        );
        // Commands below one that has examples share these.
        if name.matches('-').count() == 1 {
            assert!(text.contains(".SH EXAMPLES"), "{name} has no example");
        }
        let (_, see) = text.split_once(".SH \"SEE ALSO\"").expect(name);
        let referred = see
            .replace("\\fB", "")
            .replace("\\fR", "")
            .replace("\\-", "-");
        let referred: Vec<&str> = referred
            .split([',', '\n'])
            .filter(|l| !l.is_empty())
            .collect();
        assert!(!referred.is_empty(), "{name} refers to nothing");
        for other in referred {
            let file = other.replace('(', ".").replace(')', "");
            assert!(names.contains(&file), "{name} refers to {other:?}");
        }
    }
    let main = fs::read_to_string(home.path().join("man/man1/brood.1")).unwrap();
    for section in ["\"EXIT STATUS\"", "ENVIRONMENT", "COMMANDS"] {
        assert!(main.contains(&format!(".SH {section}")), "{section}");
    }
}

#[test]
fn a_synopsis_says_what_options_take() {
    let home = Home::bare();
    let _ = pages(&home);
    let synopsis = |page: &str| {
        let text = fs::read_to_string(home.path().join("man/man1").join(page)).unwrap();
        let (_, text) = text.split_once(".SH SYNOPSIS\n").expect(page);
        let text = text.split("\n.").next().unwrap().replace("\\-", "-");
        let plain = ["\\fB", "\\fI", "\\fR"];
        plain.iter().fold(text, |text, font| text.replace(font, ""))
    };
    let claim = synopsis("brood-pool-claim.1");
    for part in [
        "[--lease TIME]",
        "[--wait TIME]",
        "[--json]",
        "[-v|--verbose]",
        "[--config FILE]",
    ] {
        assert!(claim.contains(part), "{part}: {claim}");
    }
    assert!(
        claim.starts_with("brood pool claim ") && claim.trim_end().ends_with(" POOL"),
        "{claim}"
    );
    let restore = synopsis("brood-restore.1");
    assert!(
        restore.contains(" -n|--guests N ") && restore.trim_end().ends_with(" CHECKPOINT"),
        "{restore}"
    );
    let destroy = synopsis("brood-destroy.1");
    assert!(destroy.trim_end().ends_with("[GUEST ...]"), "{destroy}");
    assert!(synopsis("brood-pool.1").trim_end().ends_with(" COMMAND"));
}

#[test]
fn mandoc_has_nothing_against_the_pages() {
    let home = Home::bare();
    let pages = pages(&home);
    let mut lint = Command::new("mandoc");
    lint.args(["-T", "lint", "-W", "warning"]).args(&pages);
    let Some((content, said)) = tool(&mut lint) else {
        return;
    };
    assert!(content && said.is_empty(), "{said}");
    // It does complain where there is reason to.
    let bad = home.path().join("bad.1");
    fs::write(&bad, ".TH BAD 1\n.SH NAME\n.nonsense\n").unwrap();
    let mut lint = Command::new("mandoc");
    lint.args(["-T", "lint", "-W", "warning"]).arg(bad);
    let (content, said) = tool(&mut lint).expect("it was there");
    assert!(!content && !said.is_empty());
}

#[test]
fn shells_read_the_completions() {
    let home = Home::bare();
    for shell in ["bash", "zsh", "fish"] {
        let script = home.path().join(shell);
        fs::write(&script, home.brood(&["completions", shell]).ok().stdout).unwrap();
        let mut check = Command::new(shell);
        check.arg("-n").arg(&script);
        if let Some((content, said)) = tool(&mut check) {
            assert!(content && said.is_empty(), "{shell}: {said}");
        }
    }
    let _ = home.brood(&["completions", "ksh"]).exits(2);
}

/// What real shells offer for words that are being typed.
struct Shells {
    home: Home,
    path: String,
}

impl Shells {
    fn new(home: Home) -> Self {
        for (shell, file) in [
            ("bash", "brood.bash"),
            ("zsh", "_brood"),
            ("fish", "brood.fish"),
        ] {
            let script = home.brood(&["completions", shell]).ok().stdout;
            fs::write(home.path().join(file), script).unwrap();
        }
        let bin = brood();
        let folder = bin.parent().expect("a folder").display().to_string();
        let path = format!("{folder}:{}", std::env::var("PATH").unwrap());
        Self { home, path }
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.home.checkpoints())
            .env("PATH", &self.path)
            .env("HOME", self.home.path())
            .env("BROOD_STATE_DIR", self.home.state())
            .env("BROOD_CONFIG", "/dev/null");
        command
    }

    fn bash(&self, words: &str) -> Option<BTreeSet<String>> {
        let run = format!(
            "source {}/brood.bash; line='brood {words}'; COMP_WORDS=(brood {words}); \
             [[ $line == *' ' ]] && COMP_WORDS+=(''); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             COMP_TYPE=9; $(complete -p brood | sed 's/.*-F \\([^ ]*\\).*/\\1/') brood \
             \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            self.home.path().display()
        );
        self.words("bash", &["-c", &run])
    }

    fn fish(&self, words: &str) -> Option<BTreeSet<String>> {
        let run = format!(
            "source {}/brood.fish; complete -C 'brood {words}'",
            self.home.path().display()
        );
        let mut told = self.words("fish", &["--no-config", "-c", &run])?;
        told = told
            .iter()
            .filter_map(|line| line.split('\t').next())
            .map(str::to_owned)
            .collect();
        Some(told)
    }

    /// Zsh completes in a terminal only: one is made for it.
    fn zsh(&self, words: &str) -> Option<BTreeSet<String>> {
        let run = format!(
            "zmodload zsh/zpty; zpty -b z zsh -f; zpty -w z 'PS1=; fpath=({} $fpath); \
             autoload -Uz compinit; compinit -u -D; zstyle \":completion:*\" list-prompt \"\"; \
             LISTMAX=10000; setopt no_beep; compadd () {{ builtin compadd -O found \"$@\"; \
             print -rl -- \"<\"${{^found}}\">\" >&9; builtin compadd \"$@\" }}; \
             exec 9>told; echo re\"\"ady'; \
             until [[ $got == *ready* ]]; do zpty -r z got '*ready*'; done; \
             zpty -n -w z $'brood {words}\t'; \
             for i in {{1..200}}; do [[ -s told ]] && break; sleep 0.05; done; sleep 0.2; \
             zpty -d z; cat told",
            self.home.path().display()
        );
        let told = self.words("zsh", &["-f", "-c", &run])?;
        let told = told
            .iter()
            .filter_map(|line| line.strip_prefix('<')?.strip_suffix('>'));
        Some(told.map(str::to_owned).collect())
    }

    fn words(&self, shell: &str, args: &[&str]) -> Option<BTreeSet<String>> {
        let (content, said) = tool(&mut self.command(shell, args))?;
        assert!(content, "{shell}: {said}");
        let lines = said
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty());
        Some(lines.map(str::to_owned).collect())
    }

    /// Each shell that is there offers exactly these, and these only.
    #[track_caller]
    fn offer(&self, words: &str, expected: &[&str]) {
        let expected: BTreeSet<String> = expected.iter().map(ToString::to_string).collect();
        let told = [
            ("bash", self.bash(words)),
            ("zsh", self.zsh(words)),
            ("fish", self.fish(words)),
        ];
        for (shell, told) in told {
            // Bash and zsh get folders and names as they stand on the line.
            if let Some(told) = told {
                assert_eq!(told, expected, "{shell}: brood {words}");
            }
        }
    }
}

#[test]
fn shells_complete_commands_and_options() {
    let shells = Shells::new(Home::bare());
    fs::create_dir_all(shells.home.checkpoints()).unwrap();
    shells.offer("rest", &["restore"]);
    shells.offer("pool ev", &["evict"]);
    shells.offer("restore --priv", &["--private-limit"]);
    assert_eq!(
        shells.bash("ma").unwrap_or_default(),
        BTreeSet::new(),
        "hidden"
    );
    let nobody = shells.bash("show we").unwrap_or_default();
    assert_eq!(nobody, BTreeSet::new());
    assert!(!shells.home.state().exists(), "a state was made");
}

#[test]
fn shells_complete_names() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 2, "web");
    home.restore(&demo, 1, "api");
    let _ = home
        .brood(&["pool", "create", "pond", &demo.path, "--hot", "0"])
        .ok();
    let shells = Shells::new(home);
    shells.offer("show web-", &["web-1", "web-2"]);
    shells.offer("destroy web-1 ap", &["api-1"]);
    for command in ["exec", "logs", "console"] {
        shells.offer(&format!("{command} ap"), &["api-1"]);
    }
    let place = BTreeSet::from(["api-1:".to_owned()]);
    assert_eq!(shells.bash("cp ap").unwrap_or_else(|| place.clone()), place);
    shells.offer("pool claim po", &["pond"]);
    shells.offer("list --pool po", &["pond"]);
    shells.offer("restore de", &["demo"]);
    let folder = shells.home.checkpoints().display().to_string();
    let typed = format!("checkpoint verify {folder}/de");
    let whole = BTreeSet::from([format!("{folder}/demo")]);
    assert_eq!(shells.bash(&typed).unwrap_or_else(|| whole.clone()), whole);
    // Of the state that the line names.
    let other = shells.home.path().join("none").display().to_string();
    let typed = format!("--state-dir {other} show we");
    assert_eq!(shells.bash(&typed).unwrap_or_default(), BTreeSet::new());
}
