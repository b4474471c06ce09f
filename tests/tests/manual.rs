//! Manual pages and completions, as the binary makes them: each command has a page, and the tools
//! that read them have nothing to say against them.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

use brood_tests::{Home, skip};

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

#[test]
fn bash_completes_words() {
    let home = Home::bare();
    let script = home.path().join("brood.bash");
    fs::write(&script, home.brood(&["completions", "bash"]).ok().stdout).unwrap();
    let complete = |words: &str| -> Option<BTreeSet<String>> {
        let run = format!(
            "source {}; COMP_WORDS=(brood {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _brood brood \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let (content, said) = tool(Command::new("bash").args(["-c", &run]))?;
        assert!(content, "{said}");
        Some(said.split_whitespace().map(str::to_owned).collect())
    };
    let set = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    let Some(re) = complete("re") else { return };
    assert_eq!(re, set(&["restore", "resume"]));
    assert_eq!(complete("pool ev").unwrap(), set(&["evict"]));
    assert_eq!(
        complete("restore --priv").unwrap(),
        set(&["--private-limit"])
    );
    assert_eq!(complete("ma").unwrap(), set(&[]), "hidden");
}
