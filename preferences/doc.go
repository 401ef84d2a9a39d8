// Package preferences keeps what a user wants to be told, on which channels, in which
// language, and at what hours not. Services write it when a user changes a setting;
// workers read it in the moment of delivery, so that whoever opts out a second before
// is left alone.
//
// The platform's own database remains the source: what is here is its copy for the
// workers. A user without preferences gets everything at any hour.
package preferences
