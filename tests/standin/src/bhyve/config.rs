//! bhyve_config(5): a tree of variables, named by paths with dots, whose values may refer to others
//! (usr.sbin/bhyve/config.c).

use crate::exit::Exit;

const PROGRAM: &str = "bhyve";

/// How deep a reference may refer to a reference.
const DEPTH: usize = 15;

#[derive(Clone, Debug)]
enum Node {
    Value(String),
    List(Vec<(String, Node)>),
}

/// The tree.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config(Vec<(String, Node)>);

fn find<'a>(list: &'a [(String, Node)], name: &str) -> Option<&'a Node> {
    list.iter()
        .find(|(other, _)| other == name)
        .map(|(_, node)| node)
}

impl Config {
    /// What bhyve begins with (amd64/bhyverun_machdep.c, bhyve_init_config()).
    pub(crate) fn new() -> Result<Self, Exit> {
        let mut config = Self::default();
        config.set("acpi_tables", "false")?;
        config.set("acpi_tables_in_memory", "true")?;
        config.set("memory.size", "256M")?;
        config.set("x86.strictmsr", "true")?;
        config.set("lpc.fwcfg", "bhyve")?;
        Ok(config)
    }

    /// set_config_value().
    ///
    /// # Errors
    /// When a node is in the way of a value, or a value in the way of a node.
    pub(crate) fn set(&mut self, path: &str, value: &str) -> Result<(), Exit> {
        let (parents, name) = path.rsplit_once('.').unwrap_or(("", path));
        let mut list = &mut self.0;
        let names = parents.split('.').filter(|_| path.contains('.'));
        let mut walked = String::new();
        for parent in names {
            let refused = |why: String| {
                let text = format!(
                    "{PROGRAM}: {why}\n{PROGRAM}: Failed to create configuration node {parents}\n"
                );
                Exit::saying(4, text)
            };
            if parent.is_empty() {
                return Err(refused(format!("Invalid configuration node: {parents}")));
            }
            walked = if walked.is_empty() {
                parent.to_owned()
            } else {
                format!("{walked}.{parent}")
            };
            if find(list, parent).is_none() {
                list.push((parent.to_owned(), Node::List(Vec::new())));
            }
            let node = list.iter_mut().find(|(other, _)| other == parent);
            match node.map(|(_, node)| node) {
                Some(Node::List(next)) => list = next,
                _ => {
                    let why = format!(
                        "Configuration node {parents} is a child of existing variable {walked}"
                    );
                    return Err(refused(why));
                }
            }
        }
        if matches!(find(list, name), Some(Node::List(_))) {
            let text = format!("Attempting to add value {value} to existing node {path}");
            return Err(Exit::errx(PROGRAM, 4, &text));
        }
        list.retain(|(other, _)| other != name);
        list.push((name.to_owned(), Node::Value(value.to_owned())));
        Ok(())
    }

    fn node(&self, path: &str) -> Option<&Node> {
        let mut names = path.split('.');
        let mut node = find(&self.0, names.next()?)?;
        for name in names {
            match node {
                Node::List(list) => node = find(list, name)?,
                Node::Value(_) => return None,
            }
        }
        Some(node)
    }

    /// Whether there is a node of this path, with variables of its own.
    pub(crate) fn has_node(&self, path: &str) -> bool {
        matches!(self.node(path), Some(Node::List(_)))
    }

    /// get_config_value(): the value with its references filled in.
    pub(crate) fn get(&self, path: &str) -> Option<String> {
        match self.node(path)? {
            Node::Value(value) => Some(self.expand(value, 0)),
            Node::List(_) => {
                eprintln!("{PROGRAM}: Attempting to fetch value of node {path}");
                None
            }
        }
    }

    fn expand(&self, value: &str, depth: usize) -> String {
        if !value.contains('%') {
            return value.to_owned();
        }
        let mut text = String::new();
        let mut rest = value;
        while let Some(c) = rest.chars().next() {
            let after = &rest[c.len_utf8()..];
            match c {
                '%' if depth > DEPTH => {
                    eprintln!("{PROGRAM}: Too many recursive references in configuration value");
                    text.push('%');
                    rest = after;
                }
                '%' => match after.strip_prefix('(').and_then(|r| r.split_once(')')) {
                    Some((path, after)) => {
                        match self.node(path) {
                            Some(Node::Value(nested)) => text += &self.expand(nested, depth + 1),
                            _ => eprintln!(
                                "{PROGRAM}: Failed to fetch referenced configuration variable \
                                 {path}"
                            ),
                        }
                        rest = after;
                    }
                    None => {
                        eprintln!(
                            "{PROGRAM}: Invalid reference in configuration value \"{value}\""
                        );
                        text.push('%');
                        rest = after;
                    }
                },
                '\\' => {
                    let mut escaped = after.chars();
                    match escaped.next() {
                        Some(c) => text.push(c),
                        None => {
                            eprintln!("{PROGRAM}: Trailing \\ in configuration value \"{value}\"");
                        }
                    }
                    rest = escaped.as_str();
                }
                _ => {
                    text.push(c);
                    rest = after;
                }
            }
        }
        text
    }

    /// get_config_bool_default().
    ///
    /// # Errors
    /// When the value is no bool.
    pub(crate) fn bool_or(&self, path: &str, default: bool) -> Result<bool, Exit> {
        let Some(value) = self.get(path) else {
            return Ok(default);
        };
        match value.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" | "1" => Ok(true),
            "false" | "off" | "no" | "0" => Ok(false),
            _ => {
                let text = format!("Invalid value {value} for boolean variable {path}");
                Err(Exit::errx(PROGRAM, 4, &text))
            }
        }
    }

    /// dump_config(): all variables, one in a line.
    pub(crate) fn dump(&self) -> String {
        fn dump(list: &[(String, Node)], prefix: &str, text: &mut String) {
            for (name, node) in list {
                match node {
                    Node::Value(value) => *text += &format!("{prefix}{name}={value}\n"),
                    Node::List(list) => dump(list, &format!("{prefix}{name}."), text),
                }
            }
        }
        let mut text = String::new();
        dump(&self.0, "", &mut text);
        text
    }
}
