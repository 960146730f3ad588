// Package repository tests what no program reads before it is needed: GitHub's workflows and forms, the list of ./dev's parts,
// and the paths and commands that documents name.
package repository
