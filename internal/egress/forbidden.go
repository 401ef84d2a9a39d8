package egress

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// MaxURL is the longest URL in bytes.
const MaxURL = 2048

// A ForbiddenError is a request that was not made because a rule is against it. Its
// text names the rule, and neither the URL nor the address.
type ForbiddenError struct {
	// Rule is what is wrong, such as "loopback address".
	Rule string
	// Resolved is true if it is the address that the host's name has now: whoever
	// owns the name can mend that. Otherwise the URL itself can never be called.
	Resolved bool
}

// Error returns the rule.
func (e *ForbiddenError) Error() string {
	if e.Resolved {
		return "forbidden: the host's name resolves to a " + e.Rule
	}
	return "forbidden: " + e.Rule
}

// special lists what is not to be called, more specific prefixes first. Its sources
// are the registries of IANA for special-purpose IPv4 and IPv6 addresses (RFC 6890,
// RFC 8190), multicast (RFC 5771, RFC 4291), the translations of RFC 6052, RFC 8215,
// RFC 2765 and RFC 3056, and what clouds serve their machines at. Blocks that the
// registries set aside as a whole are refused as a whole.
var special = []struct {
	prefix netip.Prefix
	rule   string
}{
	{netip.MustParsePrefix("169.254.169.254/32"), "metadata address"}, // of most clouds
	{netip.MustParsePrefix("168.63.129.16/32"), "metadata address"},   // of Azure, in public space
	{netip.MustParsePrefix("100.100.100.200/32"), "metadata address"}, // of Alibaba Cloud
	{netip.MustParsePrefix("192.0.0.192/32"), "metadata address"},     // of Oracle Cloud
	{netip.MustParsePrefix("fd00:ec2::254/128"), "metadata address"},  // of AWS
	{netip.MustParsePrefix("fd20:ce::254/128"), "metadata address"},   // of Google Cloud

	{netip.MustParsePrefix("0.0.0.0/32"), "unspecified address"},
	{netip.MustParsePrefix("0.0.0.0/8"), "address of this network"},
	{netip.MustParsePrefix("10.0.0.0/8"), "private address"},
	{netip.MustParsePrefix("100.64.0.0/10"), "shared address (carrier-grade NAT)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback address"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local address"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private address"},
	{netip.MustParsePrefix("192.0.0.0/24"), "reserved address"},
	{netip.MustParsePrefix("192.0.2.0/24"), "documentation address"},
	{netip.MustParsePrefix("192.88.99.0/24"), "6to4 address"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private address"},
	{netip.MustParsePrefix("198.18.0.0/15"), "benchmarking address"},
	{netip.MustParsePrefix("198.51.100.0/24"), "documentation address"},
	{netip.MustParsePrefix("203.0.113.0/24"), "documentation address"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast address"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast address"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved address"},

	{netip.MustParsePrefix("::/128"), "unspecified address"},
	{netip.MustParsePrefix("::1/128"), "loopback address"},
	{netip.MustParsePrefix("::/96"), "IPv4-compatible address"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped address"},
	{netip.MustParsePrefix("::ffff:0:0:0/96"), "IPv4-translated address"},
	{netip.MustParsePrefix("64:ff9b::/96"), "NAT64 address"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "NAT64 address"},
	{netip.MustParsePrefix("100::/64"), "discard-only address"},
	{netip.MustParsePrefix("100:0:0:1::/64"), "dummy address"},
	{netip.MustParsePrefix("2001::/32"), "Teredo address"},
	{netip.MustParsePrefix("2001:2::/48"), "benchmarking address"},
	{netip.MustParsePrefix("2001::/23"), "reserved address"},
	{netip.MustParsePrefix("2001:db8::/32"), "documentation address"},
	{netip.MustParsePrefix("2002::/16"), "6to4 address"},
	{netip.MustParsePrefix("3fff::/20"), "documentation address"},
	{netip.MustParsePrefix("5f00::/16"), "segment routing address"},
	{netip.MustParsePrefix("fc00::/7"), "private address"},
	{netip.MustParsePrefix("fe80::/10"), "link-local address"},
	{netip.MustParsePrefix("fec0::/10"), "site-local address"},
	{netip.MustParsePrefix("ff00::/8"), "multicast address"},
}

// global is what IANA has given out of IPv6 for unicast: whatever lies beyond is
// unassigned, and special as soon as somebody assigns it.
var global = netip.MustParsePrefix("2000::/3")

// rule returns why addr is not to be called, or "".
func rule(addr netip.Addr) string {
	if !addr.IsValid() {
		return "invalid address"
	}
	addr = addr.WithZone("")
	for _, s := range special {
		if s.prefix.Contains(addr) {
			return s.rule
		}
	}
	if addr.Is6() && !global.Contains(addr) {
		return "reserved address"
	}
	return ""
}

// allowed reports whether one of the prefixes of allow has addr.
func allowed(addr netip.Addr, allow []netip.Prefix) bool {
	addr = addr.WithZone("").Unmap()
	return slices.ContainsFunc(allow, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// CheckURL returns the parsed URL, or a *[ForbiddenError] if [Client.Do] could never
// call it with this allow-list. It does not resolve the host's name: what that
// leads to is judged at every connection.
func CheckURL(raw string, allow []netip.Prefix) (*url.URL, error) {
	if len(raw) > MaxURL {
		return nil, &ForbiddenError{Rule: "URL of more than 2048 bytes"}
	}
	u, err := url.Parse(raw)
	if err != nil { // whose text has the URL in it
		return nil, &ForbiddenError{Rule: "malformed URL"}
	}
	if err := check(u, allow); err != nil {
		return nil, err
	}
	return u, nil
}

// check judges what can be judged without the network.
func check(u *url.URL, allow []netip.Prefix) error {
	host := u.Hostname()
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return &ForbiddenError{Rule: "scheme other than https"}
	case u.Opaque != "" || host == "":
		return &ForbiddenError{Rule: "URL without a host"}
	case u.User != nil:
		return &ForbiddenError{Rule: "user or password in the URL"}
	}
	addr, err := netip.ParseAddr(host)
	literal := err == nil
	switch {
	case literal && allowed(addr, allow):
		return nil
	case literal:
		if r := rule(addr); r != "" {
			return &ForbiddenError{Rule: r}
		}
	case len(allow) > 0:
		return nil // the name may lead there
	case isLocalhost(host):
		return &ForbiddenError{Rule: "loopback address"}
	}
	if r := public(u.Scheme, u.Port()); r != "" {
		return &ForbiddenError{Rule: r}
	}
	return nil
}

// public returns why nothing outside an allow-list is called in this way, or "".
func public(scheme, port string) string {
	switch {
	case scheme != "https":
		return "scheme other than https"
	case port != "" && port != "443":
		return "port other than 443"
	}
	return ""
}

// isLocalhost knows the names that are loopback by RFC 6761, 6.3.
func isLocalhost(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}
