// Package config reads the environment, and a .env file beside it, into one
// typed and validated value.
//
// Invariants:
//
//   - [Load] reports every problem at once, each as an [*Error] that names the
//     variable, what it held (never a secret) and what is accepted.
//   - Nothing is guessed: settings that contradict each other are an error, and
//     so is a misspelt name.
//   - No secret is printed: not by [Config.Settings], not by fmt, not by JSON.
//   - It reads files and nothing else: no connection, no log, no global state.
//
// Precedence: the environment wins over .env, and .env over the default. An
// empty value counts as unset. A secret NAME can also be given as NAME_FILE, the
// path of a file that holds it (a mounted Kubernetes or Docker secret). Relative
// paths start at the working directory.
package config
