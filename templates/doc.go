// Package templates holds postroom's email templates and renders them.
package templates
