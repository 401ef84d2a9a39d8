// Package egress makes HTTP requests to URLs that others chose: webhooks, push
// endpoints, chats. Whoever registers a URL could otherwise have the workers call
// what only they can reach, such as a cloud's metadata service (server-side request
// forgery).
//
//	client, err := egress.New(egress.Config{})
//	resp, err := client.Do(req, nil)
//
// Invariants:
//
//   - The address is judged when the socket is about to connect, after the name was
//     resolved, so that a name that resolves to something else a moment later (DNS
//     rebinding) changes nothing. Every address that the dialer tries is judged.
//   - What is not globally reachable by the special-purpose address registries of
//     IANA is refused, and so are the IPv6 forms that carry an IPv4 address within:
//     a translator on the way would unpack them. The predicates of package netip
//     know about half of these.
//   - https on port 443 only, TLS 1.2 or newer, no user and password in the URL, no
//     proxy from the environment, no cookies. A redirect is an answer like any other
//     and is not followed.
//   - What may be private is said per request, as a list of prefixes; there http and
//     any port are allowed too, and only there. A connection that was made under one
//     list is never used under another.
//   - Headers, bodies and times are bounded.
//   - No error names a URL, a host or an address.
//
// A network whose NAT64 prefix is its own, or whose internal services have public
// addresses, is not in any registry: there, only a firewall helps.
package egress
