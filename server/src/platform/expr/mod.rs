//! The CEL kit: compile a condition with limits, evaluate it cheaply and without panics.
//!
//! Who calls me: `rules` (validation and evaluation). I call the crate `cel`.
//!
//! Promise: whatever source is given, [`compile`] answers or refuses with a position; whatever it accepted,
//! [`Expression::eval_bool`] answers or fails, in time linear in source and variables: comprehension macros
//! (`all`, `exists`, `map`, `filter`...) have no run-time budget in the engine and are refused, and so is every
//! function off the list in `check`. A panic in the engine is caught and is an error of that evaluation.
//!
//! Limits: [`SOURCE_BYTES_MAX`], [`NESTING_MAX`], [`AST_DEPTH_MAX`], [`AST_NODES_MAX`], [`LIST_ITEMS_MAX`],
//! [`KEYS_MAX`]. Comparisons take int and double together; arithmetic does not (`value * 2.0`, not `value * 2`).

mod check;

use cel::parser::Expression as Ast;
use cel::{Context, Env, ExecutionError, Value, extensions};
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock};

pub use cel::common::types::{CelBool, CelDouble, CelMap, CelMapKey, CelString};
pub use cel::common::value::{CowVal, Val};
pub use cel::context::VariableResolver;

/// The longest source, in bytes.
pub const SOURCE_BYTES_MAX: usize = 1024;
/// Brackets open at once; bounds the parser's stack.
pub const NESTING_MAX: usize = 24;
/// The deepest syntax tree; bounds the evaluation's stack.
pub const AST_DEPTH_MAX: usize = 48;
/// Nodes of one syntax tree.
pub const AST_NODES_MAX: usize = 400;
/// Items of one list or map literal.
pub const LIST_ITEMS_MAX: usize = 64;
/// Distinct keys that one expression may read from a [`Keys::Named`] map.
pub const KEYS_MAX: usize = 16;
/// The longest message kept of an error, in characters.
const MESSAGE_CHARS_MAX: usize = 240;

/// How an expression may use a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// A plain value, without fields.
    Scalar,
    /// A map that may be read by any key and as a whole.
    Any,
    /// A map that is read by literal keys only (`last["a"]`, `last.a`, `"a" in last`), so that the reader knows
    /// beforehand what to keep.
    Named,
    /// A record with exactly these fields.
    Fields(&'static [&'static str]),
}

/// A variable that an expression may use.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// How it may be used.
    pub keys: Keys,
}

/// Where in the source an error is: from 1, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character within the line.
    pub column: usize,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {} column {}", self.line, self.column)
    }
}

/// Why a source is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {message}")]
pub struct CompileError {
    /// Where.
    pub at: Position,
    /// What was expected.
    pub message: String,
}

/// Why an evaluation gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// A map lacks the key: the value is not known yet.
    #[error("no such key: {0}")]
    MissingKey(String),
    /// The answer is neither true nor false.
    #[error("the answer is not a bool but a {0}")]
    NotBool(String),
    /// Anything else that the engine refused.
    #[error("{0}")]
    Failed(String),
    /// The engine panicked; a defect.
    #[error("the evaluation panicked")]
    Panicked,
}

/// A compiled condition.
#[derive(Debug)]
pub struct Expression {
    ast: Ast,
    variables: BTreeSet<&'static str>,
    keys: BTreeSet<Box<str>>,
}

static BASE: LazyLock<Context<'static, 'static>> = LazyLock::new(|| Context::with_env(ENV.clone()));
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(false);
    env.add_extension(extensions::math).expect("the math extension joins a fresh environment");
    Arc::new(env)
});

/// Compiles and checks a source that may use these variables.
///
/// # Errors
/// The first thing that is wrong, with its position.
pub fn compile(source: &str, variables: &[Variable]) -> Result<Expression, CompileError> {
    let start = Position { line: 1, column: 1 };
    let refuse = |at, message: &str| Err(CompileError { at, message: message.to_owned() });
    if source.trim().is_empty() {
        return refuse(start, "must not be empty");
    }
    if source.len() > SOURCE_BYTES_MAX {
        return refuse(start, &format!("must be at most {SOURCE_BYTES_MAX} bytes"));
    }
    if let Some(at) = too_nested(source) {
        return refuse(position(source, at), &format!("must nest at most {NESTING_MAX} brackets"));
    }
    let parsed = std::panic::catch_unwind(AssertUnwindSafe(|| ENV.compile(source)));
    let program = match parsed {
        Ok(Ok(program)) => program,
        Ok(Err(errors)) => return Err(parse_error(&errors)),
        Err(_) => return refuse(start, "cannot be parsed"),
    };
    let found = check::check(program.expression(), variables).map_err(|fault| CompileError {
        at: program
            .source_info()
            .offset_for(fault.node)
            .map_or(start, |(at, _)| position(source, at as usize)),
        message: fault.message,
    })?;
    Ok(Expression { ast: program.expression().clone(), variables: found.variables, keys: found.keys })
}

impl Expression {
    /// Evaluates with the variables that `resolver` gives. Nothing is copied that the answer does not need.
    ///
    /// # Errors
    /// A key is missing, the types do not fit, or the answer is no bool.
    pub fn eval_bool(&self, resolver: &dyn VariableResolver) -> Result<bool, EvalError> {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let scope = scope(&BASE, resolver);
            let value = Value::resolve_val(&self.ast, &scope).map_err(eval_error)?;
            let answer = value.downcast_ref::<CelBool>().map(|answer| *answer.inner());
            answer.ok_or_else(|| EvalError::NotBool(value.get_type().name().to_owned()))
        }));
        outcome.unwrap_or(Err(EvalError::Panicked))
    }

    /// Whether the expression uses a variable.
    #[must_use]
    pub fn uses(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    /// The literal keys that it reads from its [`Keys::Named`] variable.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(AsRef::as_ref)
    }
}

fn scope<'a>(base: &'a Context<'a, 'a>, resolver: &'a dyn VariableResolver) -> Context<'a, 'a> {
    let mut scope = base.new_inner_scope();
    scope.set_variable_resolver(resolver);
    scope
}

fn eval_error(error: ExecutionError) -> EvalError {
    match error {
        ExecutionError::NoSuchKey(key) => EvalError::MissingKey(shortened(&key)),
        ExecutionError::UnsupportedBinaryOperator(operator, Value::Float(_), Value::Int(_))
        | ExecutionError::UnsupportedBinaryOperator(operator, Value::Int(_), Value::Float(_)) => {
            EvalError::Failed(format!("{operator} of a double and an int: write 2.0, not 2"))
        }
        other => EvalError::Failed(shortened(&plain(&other.to_string()))),
    }
}

/// Says `*` for the engine's `'_*_'`.
fn plain(message: &str) -> String {
    message.replace("'_", "'").replace("_'", "'")
}

fn shortened(text: &str) -> String {
    text.chars().take(MESSAGE_CHARS_MAX).collect()
}

fn parse_error(errors: &cel::ParseErrors) -> CompileError {
    let first = errors.errors.first();
    let (line, column) = first.map_or((1, 1), |error| error.pos);
    let at_least_one = |n: isize| usize::try_from(n).unwrap_or(1).max(1);
    let at = Position { line: at_least_one(line), column: at_least_one(column) };
    let message = first.map_or("cannot be parsed", |error| error.msg.as_str());
    CompileError { at, message: shortened(message) }
}

/// The offset, in characters, of the bracket that opens too deep. Brackets within text count too.
fn too_nested(source: &str) -> Option<usize> {
    let mut open = 0_usize;
    for (at, c) in source.chars().enumerate() {
        match c {
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > NESTING_MAX {
            return Some(at);
        }
    }
    None
}

fn position(source: &str, offset: usize) -> Position {
    let before: String = source.chars().take(offset).collect();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    Position { line, column }
}

#[cfg(test)]
mod tests;
