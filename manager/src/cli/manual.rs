//! `brood man`: manual pages, made from the texts of `--help`.
//!
//! Each command has a page, and so has the configuration file. The format is man(7).

use std::{fs, io, path::PathBuf, process::ExitCode};

use clap::{Arg, Args, Command, CommandFactory};
use clap_mangen::{
    Man,
    roff::{Roff, bold, italic, roman},
};
use jiff::{Timestamp, civil::Date, tz::TimeZone};

use super::Cli;
use crate::config::EXAMPLE;
use crate::failure::Failure;

/// Writes the manual pages into a folder, in man1 and man5 below it
#[derive(Debug, Args)]
pub(super) struct Manual {
    /// The folder; brood creates it if needed
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Date of the pages, YYYY-MM-DD [default: today]
    #[arg(long, value_name = "DATE")]
    date: Option<Date>,
}

/// What all pages have in common.
struct Pages {
    dir: PathBuf,
    date: String,
}

impl Manual {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let today = || TimeZone::UTC.to_datetime(Timestamp::now()).date();
        let pages = Pages {
            dir: self.out,
            date: self.date.unwrap_or_else(today).to_string(),
        };
        let mut command = Cli::command().disable_help_subcommand(true);
        command.build();
        let written = ["man1", "man5"]
            .iter()
            .try_for_each(|section| fs::create_dir_all(pages.dir.join(section)))
            .and_then(|()| pages.command(&command, &[]))
            .and_then(|()| pages.configuration());
        written.map_err(|e| {
            let tried = format!(
                "cannot write manual pages into {}: {e}",
                pages.dir.display()
            );
            Failure::new(&tried, None)
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes the section on options. Before a list of possible values, clap_mangen ends a line, leaves
/// one empty and ends that again, which mandoc finds fault with.
fn options(man: &Man, page: &mut Vec<u8>) -> io::Result<()> {
    let mut section = Vec::new();
    man.render_options_section(&mut section)?;
    let section = String::from_utf8(section).map_err(io::Error::other)?;
    page.extend(section.replace(".br\n\n.br\n", ".sp\n").into_bytes());
    Ok(())
}

impl Pages {
    /// Writes the page of a command that stands below others, and those of its own subcommands.
    fn command(&self, command: &Command, above: &[String]) -> io::Result<()> {
        let name = page_name(command);
        let below: Vec<&Command> = visible(command).collect();
        let mut page = Vec::new();
        let man = self.man(command.clone(), "1");
        man.render_title(&mut page)?;
        man.render_name_section(&mut page)?;
        synopsis(command).to_writer(&mut page)?;
        man.render_description_section(&mut page)?;
        options(&man, &mut page)?;

        let mut roff = Roff::new();
        if !below.is_empty() {
            roff.control("SH", ["COMMANDS"]);
            for sub in &below {
                roff.control("TP", []);
                roff.text([bold(format!("{}(1)", page_name(sub)))]);
                roff.text([roman(about(sub))]);
            }
        }
        let after = command.get_after_help().map(ToString::to_string);
        for (title, lines) in sections(&after.unwrap_or_default()) {
            roff.control("SH", [title.as_str()]);
            literal(&mut roff, lines.iter().map(String::as_str));
        }
        let see = above.iter().cloned();
        let see = see.chain(below.iter().map(|sub| page_name(sub)));
        let see = see.map(|page| (page, '1'));
        see_also(&mut roff, see.chain([("brood.toml".to_owned(), '5')]));
        page.extend(roff.to_roff().into_bytes());
        fs::write(self.path(&name, '1'), page)?;

        let above: Vec<String> = above.iter().cloned().chain([name]).collect();
        below.iter().try_for_each(|sub| self.command(sub, &above))
    }

    /// Writes the page of the configuration file.
    fn configuration(&self) -> io::Result<()> {
        let command = Command::new("brood.toml").about("configuration of brood");
        let mut page = Vec::new();
        let man = self.man(command, "5");
        man.render_title(&mut page)?;
        man.render_name_section(&mut page)?;
        let mut roff = Roff::new();
        roff.control("SH", ["DESCRIPTION"]);
        roff.text([roman(
            "A file in TOML. This one, which brood config example prints, explains every setting \
             and changes nothing:",
        )]);
        roff.control("PP", []);
        literal(&mut roff, EXAMPLE.lines());
        let see = ["brood", "brood-config-check", "brood-config-example"];
        see_also(&mut roff, see.map(|page| (page.to_owned(), '1')));
        page.extend(roff.to_roff().into_bytes());
        fs::write(self.path("brood.toml", '5'), page)
    }

    fn man(&self, command: Command, section: &str) -> Man {
        let title = page_name(&command).to_uppercase();
        Man::new(command)
            .title(title)
            .section(section)
            .date(self.date.clone())
            .source(concat!("brood ", env!("CARGO_PKG_VERSION")))
            .manual("brood manual")
    }

    fn path(&self, name: &str, section: char) -> PathBuf {
        self.dir.join(format!("man{section}/{name}.{section}"))
    }
}

/// The synopsis of a command: each option with its value, optional ones in brackets.
fn synopsis(command: &Command) -> Roff {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let mut words = vec![bold(name)];
    let shown = || command.get_arguments().filter(|arg| !arg.is_hide_set());
    let (own, common): (Vec<&Arg>, Vec<&Arg>) = shown()
        .filter(|arg| !arg.is_positional())
        .partition(|arg| !arg.is_global_set() && arg.get_id() != "help");
    let positional = shown().filter(|arg| arg.is_positional());
    for arg in own.into_iter().chain(common).chain(positional) {
        let (open, close) = match arg.is_required_set() {
            true => (" ", ""),
            false => (" [", "]"),
        };
        words.push(roman(open));
        if let Some(long) = arg.get_long() {
            if let Some(short) = arg.get_short() {
                words.extend([bold(format!("-{short}")), roman("|")]);
            }
            words.push(bold(format!("--{long}")));
        }
        let takes = arg.get_action().takes_values();
        for (n, value) in arg
            .get_value_names()
            .filter(|_| takes)
            .into_iter()
            .flatten()
            .enumerate()
        {
            let space = if n > 0 || !arg.is_positional() {
                " "
            } else {
                ""
            };
            words.extend([roman(space), italic(value.as_str())]);
        }
        let many = arg
            .get_num_args()
            .is_some_and(|range| range.max_values() > 1);
        words.push(roman(if many && arg.is_positional() {
            " ..."
        } else {
            ""
        }));
        words.push(roman(close));
    }
    if command.has_subcommands() {
        words.extend([roman(" "), italic("COMMAND")]);
    }
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    roff.text(words);
    roff
}

/// Subcommands that people are meant to use.
fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set())
}

/// `brood-pool-create` for `brood pool create`.
fn page_name(command: &Command) -> String {
    let name = command.get_display_name();
    name.unwrap_or_else(|| command.get_name()).to_owned()
}

fn about(command: &Command) -> String {
    command
        .get_about()
        .map_or_else(String::new, ToString::to_string)
}

/// What stands under the options in `--help`, as sections of a page: paragraphs under a line that
/// ends with a colon go by that line, others are notes.
fn sections(after: &str) -> Vec<(String, Vec<String>)> {
    let mut sections: Vec<(String, Vec<String>)> = Vec::new();
    for paragraph in after.split("\n\n").filter(|p| !p.trim().is_empty()) {
        let mut lines = paragraph.lines().map(str::to_owned).collect::<Vec<_>>();
        let title = if let Some(example) = lines[0].strip_prefix("Example: ") {
            lines[0] = example.to_owned();
            "EXAMPLES".to_owned()
        } else if let Some(title) = lines[0].strip_suffix(':').map(str::to_owned) {
            lines.remove(0);
            match title.as_str() {
                "Example" => "EXAMPLES".to_owned(),
                "Exit codes" => "EXIT STATUS".to_owned(),
                _ => title.to_uppercase(),
            }
        } else {
            "NOTES".to_owned()
        };
        let lines = lines
            .iter()
            .map(|line| line.strip_prefix("  ").unwrap_or(line).to_owned());
        match sections.iter_mut().find(|(known, _)| *known == title) {
            Some((_, known)) => known.extend(lines),
            None => sections.push((title, lines.collect())),
        }
    }
    sections
}

/// Lines as they are.
fn literal<'a>(roff: &mut Roff, lines: impl Iterator<Item = &'a str>) {
    roff.control("nf", []);
    for line in lines {
        if line.is_empty() {
            roff.control("sp", []);
        } else {
            roff.text([roman(line)]);
        }
    }
    roff.control("fi", []);
}

fn see_also(roff: &mut Roff, pages: impl IntoIterator<Item = (String, char)>) {
    roff.control("SH", ["SEE ALSO"]);
    let pages: Vec<(String, char)> = pages.into_iter().collect();
    for (n, (page, section)) in pages.iter().enumerate() {
        let comma = if n + 1 < pages.len() { "," } else { "" };
        roff.text([bold(page.as_str()), roman(format!("({section}){comma}"))]);
    }
}
