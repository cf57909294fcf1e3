//! Walks a parsed condition: what it may call, what it may read, how large it may be.

use super::{AST_DEPTH_MAX, AST_NODES_MAX, KEYS_MAX, Keys, LIST_ITEMS_MAX, Variable};
use cel::common::ast::{CallExpr, EntryExpr, Expr, LiteralValue, SelectExpr, operators};
use cel::parser::Expression as Ast;
use std::collections::BTreeSet;

/// Operators; their operands are walked as arguments.
const OPERATORS: [&str; 17] = [
    operators::CONDITIONAL,
    operators::LOGICAL_AND,
    operators::LOGICAL_OR,
    operators::LOGICAL_NOT,
    operators::SUBSTRACT,
    operators::ADD,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::GREATER_EQUALS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::LESS,
    operators::NEGATE,
    operators::IN,
];
const FUNCTIONS: [&str; 9] =
    ["size", "contains", "startsWith", "endsWith", "matches", "int", "double", "string", "bool"];
/// What `math.abs` and its like parse to; `greatest` and `least` are macros and already plain calls.
const MATH: [&str; 6] = ["abs", "ceil", "floor", "round", "sqrt", "sign"];
const MATH_CALLS: [&str; 2] = ["math.@max", "math.@min"];

/// What is wrong, and at which node.
pub(super) struct Fault {
    pub(super) node: u64,
    pub(super) message: String,
}

/// What an accepted expression reads.
#[derive(Default)]
pub(super) struct Found {
    pub(super) variables: BTreeSet<&'static str>,
    pub(super) keys: BTreeSet<Box<str>>,
    nodes: usize,
}

pub(super) fn check(ast: &Ast, variables: &[Variable]) -> Result<Found, Fault> {
    let mut walk = Walk { variables, found: Found::default() };
    walk.node(ast, 1)?;
    Ok(walk.found)
}

struct Walk<'a> {
    variables: &'a [Variable],
    found: Found,
}

fn fault(node: &Ast, message: impl Into<String>) -> Fault {
    Fault { node: node.id, message: message.into() }
}

impl Walk<'_> {
    fn node(&mut self, node: &Ast, depth: usize) -> Result<(), Fault> {
        self.found.nodes += 1;
        if depth > AST_DEPTH_MAX {
            let why = format!("must be at most {AST_DEPTH_MAX} operations deep: split the rule");
            return Err(fault(node, why));
        }
        if self.found.nodes > AST_NODES_MAX {
            let why = format!("must have at most {AST_NODES_MAX} operations and values: split the rule");
            return Err(fault(node, why));
        }
        match &node.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => self.whole(node, name),
            Expr::Select(select) => self.select(node, select, depth),
            Expr::Call(call) => self.call(node, call, depth),
            Expr::List(list) => {
                bounded(node, list.elements.len())?;
                list.elements.iter().try_for_each(|item| self.node(item, depth + 1))
            }
            Expr::Map(map) => {
                bounded(node, map.entries.len())?;
                map.entries.iter().try_for_each(|entry| match &entry.expr {
                    EntryExpr::MapEntry(entry) => {
                        self.node(&entry.key, depth + 1)?;
                        self.node(&entry.value, depth + 1)
                    }
                    EntryExpr::StructField(field) => self.node(&field.value, depth + 1),
                })
            }
            Expr::Comprehension(_) => {
                Err(fault(node, "loops (all, exists, exists_one, map, filter) are not allowed"))
            }
            Expr::Struct(_) => Err(fault(node, "messages are not allowed")),
            Expr::Unspecified => Err(fault(node, "is incomplete")),
        }
    }

    fn variable(&self, name: &str) -> Option<Variable> {
        self.variables.iter().copied().find(|variable| variable.name == name)
    }

    /// A variable that stands alone.
    fn whole(&mut self, node: &Ast, name: &str) -> Result<(), Fault> {
        let Some(variable) = self.variable(name) else {
            let known: Vec<_> = self.variables.iter().map(|variable| variable.name).collect();
            return Err(fault(node, format!("{name} is not known; there are: {}", known.join(", "))));
        };
        match variable.keys {
            Keys::Scalar | Keys::Any => {
                self.found.variables.insert(variable.name);
                Ok(())
            }
            Keys::Named => {
                Err(fault(node, format!("{name} is read by name: {name}[\"metric\"] or {name}.metric")))
            }
            Keys::Fields(fields) => Err(fault(
                node,
                format!("{name} is read by field: {name}.{}", fields.join(&format!(", {name}."))),
            )),
        }
    }

    /// A key read from a variable.
    fn key(&mut self, node: &Ast, variable: Variable, key: &str) -> Result<(), Fault> {
        let name = variable.name;
        match variable.keys {
            Keys::Scalar => return Err(fault(node, format!("{name} has no fields"))),
            Keys::Fields(fields) if !fields.contains(&key) => {
                return Err(fault(
                    node,
                    format!("{name} has no field {key}; there are: {}", fields.join(", ")),
                ));
            }
            Keys::Named => {
                self.found.keys.insert(key.into());
                if self.found.keys.len() > KEYS_MAX {
                    return Err(fault(node, format!("reads more than {KEYS_MAX} names from {name}")));
                }
            }
            Keys::Any | Keys::Fields(_) => {}
        }
        self.found.variables.insert(name);
        Ok(())
    }

    fn select(&mut self, node: &Ast, select: &SelectExpr, depth: usize) -> Result<(), Fault> {
        match &select.operand.expr {
            Expr::Ident(name) if self.variable(name).is_some() => {
                let Some(variable) = self.variable(name) else { return Ok(()) };
                self.key(node, variable, &select.field)
            }
            _ => self.node(&select.operand, depth + 1),
        }
    }

    fn call(&mut self, node: &Ast, call: &CallExpr, depth: usize) -> Result<(), Fault> {
        let name = call.func_name.as_str();
        if let Some(target) = &call.target {
            if matches!(&target.expr, Expr::Ident(space) if space == "math") {
                if !MATH.contains(&name) {
                    return Err(fault(
                        node,
                        format!("math.{name} is not known; there are: {}", MATH.join(", ")),
                    ));
                }
            } else if FUNCTIONS.contains(&name) {
                self.node(target, depth + 1)?;
            } else {
                return Err(unknown_function(node, name));
            }
            return call.args.iter().try_for_each(|arg| self.node(arg, depth + 1));
        }
        match (name, call.args.as_slice()) {
            (operators::INDEX, [map, key]) => self.read(node, map, key, depth),
            (operators::IN, [key, map]) if self.named(map).is_some() => self.read(node, map, key, depth),
            _ if OPERATORS.contains(&name) || FUNCTIONS.contains(&name) || MATH_CALLS.contains(&name) => {
                call.args.iter().try_for_each(|arg| self.node(arg, depth + 1))
            }
            _ => Err(unknown_function(node, name)),
        }
    }

    /// The variable that an operand names, where it is one that must be read by literal keys.
    fn named(&self, operand: &Ast) -> Option<Variable> {
        let Expr::Ident(name) = &operand.expr else { return None };
        self.variable(name).filter(|variable| matches!(variable.keys, Keys::Named | Keys::Fields(_)))
    }

    /// `map[key]` or `key in map`.
    fn read(&mut self, node: &Ast, map: &Ast, key: &Ast, depth: usize) -> Result<(), Fault> {
        if let Some(variable) = self.named(map) {
            let Expr::Literal(LiteralValue::String(key)) = &key.expr else {
                return Err(fault(key, format!("{} is read by a name in quotes", variable.name)));
            };
            return self.key(node, variable, key.inner());
        }
        self.node(map, depth + 1)?;
        self.node(key, depth + 1)
    }
}

fn bounded(node: &Ast, items: usize) -> Result<(), Fault> {
    if items > LIST_ITEMS_MAX {
        return Err(fault(node, format!("holds {items} items, more than {LIST_ITEMS_MAX}")));
    }
    Ok(())
}

fn unknown_function(node: &Ast, name: &str) -> Fault {
    let shown = name.trim_matches(|c| c == '_' || c == '@');
    fault(
        node,
        format!(
            "function {shown} is not known; there are: {}, has, math.greatest, math.least, math.{}",
            FUNCTIONS.join(", "),
            MATH.join(", math.")
        ),
    )
}
