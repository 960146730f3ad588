// Package tilt tests the Tiltfile without Tilt: it evaluates the file against fakes of the builtins that it uses, each
// with the parameters that https://docs.tilt.dev/api.html gives it, and checks what the file asks for.
package tilt
