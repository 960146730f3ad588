// Package chart renders the Helm chart under many values, and checks its schema and its README against them.
package chart
